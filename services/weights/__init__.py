"""Weight versions: raw tensors, exact deltas, versions on disk, and how generators fetch them."""
