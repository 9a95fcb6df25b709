"""The trained model: loading, packed forward passes, the loss over the vocabulary, adapters, canaries."""
