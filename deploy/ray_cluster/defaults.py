"""Defaults of `sept ray` and of the Serve application. Light, so that `sept --help` can show them without Ray."""

from __future__ import annotations

MIN_GENERATORS = 1
DOWNSCALE_AFTER_S = 300.0
SERVE_PORT = 8000
"""Where Serve's proxies listen."""
