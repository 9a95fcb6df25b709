"""One machine: the supervisor that starts the parts of a run and starts them again, and where each is placed."""
