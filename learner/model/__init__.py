"""The trained model: loading, packed forward passes, adapters, canaries, and its weights on the wire."""
