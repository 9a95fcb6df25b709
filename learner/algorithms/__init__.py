"""What a token costs: one file for each algorithm."""
