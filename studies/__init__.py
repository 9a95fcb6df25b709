"""Experiments on top of runs: evaluation commands, comparisons of methods, the demo."""
