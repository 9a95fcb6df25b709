"""Optimizer steps on a round of rollouts, and the checkpoints that they resume from."""
