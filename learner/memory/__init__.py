"""How much memory a learner needs, and what makes it fit. Imports neither torch nor transformers."""
