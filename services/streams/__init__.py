"""Everything that a run keeps in Redis: tasks, rollouts, heartbeats, events, control requests."""
