"""Prompts: read, rendered to token ids, and ordered into rounds with their temperatures."""
