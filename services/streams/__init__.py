"""Redis streams: tasks out, rollouts back, heartbeats and events beside them."""
