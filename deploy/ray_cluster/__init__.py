"""A Ray cluster: the Serve application, its actors, and the policy that scales generators with the queue."""
