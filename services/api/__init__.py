"""The FastAPI app: weight sync, status, metrics, control."""
