"""Names that the vLLM engine and its worker processes agree on. Imports nothing, so that both may import it."""

BACKEND = "sept"
"""Name of the weight-transfer engine."""

GENERATOR_PID = "SEPT_GENERATOR_PID"
"""Environment variable with the process id of the generator; the workers end when it does."""

INDICES = "indices:"
VALUES = "values:"
"""Prefixes of a patched tensor's two entries in an update file."""
