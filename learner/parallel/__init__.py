"""Several processes that train one model: how they start, communicate and shard tensors."""
