"""docker-compose and Kubernetes: images, manifests, health checks, monitoring and the relay."""
