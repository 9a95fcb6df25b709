"""Defaults of `sept ray` and of the Serve application. Light, so that `sept --help` can show them without Ray."""

from __future__ import annotations

from typing import Literal

MIN_GENERATORS = 1
DOWNSCALE_AFTER_S = 300.0
SERVE_PORT = 8000
"""Where Serve's proxies listen."""
LearnerStrategy = Literal["STRICT_SPREAD", "PACK"]
"""Of a learner of several nodes. STRICT_SPREAD: each on a Ray node of its own; PACK: as few Ray nodes as have room."""
