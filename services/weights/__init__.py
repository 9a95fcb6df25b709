"""Weight versions: raw tensors, exact deltas, the store on disk, the client and the mirror of a puller."""
