"""A model folder without its weights: which files belong to the model, and its tokenizer."""
