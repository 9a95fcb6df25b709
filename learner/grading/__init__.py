"""Grades answers against reference answers, within limits on time and memory."""
