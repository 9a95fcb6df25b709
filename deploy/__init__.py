"""Places the parts on a machine, on docker-compose or on Ray, and holds no logic of its own."""
