"""Readers of data files: one row after the other, each with the place it comes from."""
