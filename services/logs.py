"""Structured log lines of a part on standard error, for people or as JSON.

`SEPT_LOG=json` chooses JSON. The supervisor, docker or Ray stores the lines.
"""

from __future__ import annotations

import logging
import os
import sys

import structlog


def configure_logs(part_id: str) -> None:
    """Set up structlog and the standard library's logging for this process; call once, from an entry point."""
    json_lines = os.environ.get("SEPT_LOG") == "json"
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json_lines else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            lambda _logger, _method, event: {"part": part_id, **event},
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # looked up at every line, so that a replaced sys.stderr (a test, a notebook) gets the lines
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
