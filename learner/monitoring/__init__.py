"""What a run tells people: records, heartbeats, signs of collapse, trackers, traces."""
