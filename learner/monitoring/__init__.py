"""What a run reports: records, heartbeats, signs of collapse, trackers, traces."""
