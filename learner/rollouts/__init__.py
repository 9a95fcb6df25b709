"""Tasks out to the queue, rollouts in: the learner's side of Redis."""
