"""Several processes that train one model: who they are, what they tell each other, how tensors are sharded."""
