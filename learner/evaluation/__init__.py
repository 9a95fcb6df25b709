"""How good a model is: benchmarks, answers drawn and graded, pass@k."""
