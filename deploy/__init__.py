"""Places the parts on one machine, on docker-compose, Kubernetes or Ray. What the parts compute is elsewhere."""
