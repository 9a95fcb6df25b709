"""Measures how good a model is: benchmarks, sampled and graded answers, pass@k."""
