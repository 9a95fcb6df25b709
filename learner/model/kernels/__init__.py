"""Computations that are written or chosen for speed, each with what it equals; they know tensors, not models."""
