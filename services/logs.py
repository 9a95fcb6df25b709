"""Structured log lines of a part on standard error, for people or as JSON.

`SEPT_LOG=json` chooses JSON. The supervisor, docker or Ray stores the lines. Of a warning that repeats there is one
line a second, which counts the others: what others send must not fill the disk.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable

import structlog

MAX_KINDS = 1024
"""Kinds of lines that are remembered; there are fewer in the code."""


class OncePerSecond:
    """Lets one line of each kind through a second.

    rate.suppressed("redis_failed")     # 0: write it
    rate.suppressed("redis_failed")     # None, within the second: drop it
    rate.suppressed("redis_failed")     # later 17: write it, and say that so many were dropped
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[str, tuple[float, int]] = {}

    def suppressed(self, kind: str) -> int | None:
        """How many lines of this kind were dropped since the last one; None: drop this one, too."""
        now = self._clock()
        written_at, dropped = self._kinds.get(kind, (-math.inf, 0))
        if now - written_at < 1.0:
            self._kinds[kind] = written_at, dropped + 1
            return None
        if len(self._kinds) >= MAX_KINDS:
            self._kinds.clear()
        self._kinds[kind] = now, 0
        return dropped

    def of_structlog(
        self, _logger: object, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """As a processor of structlog: for warnings and errors."""
        if method in ("debug", "info"):
            return event
        dropped = self.suppressed(str(event.get("event")))
        if dropped is None:
            raise structlog.DropEvent
        return {**event, "repeated": dropped} if dropped else event

    def of_logging(self, record: logging.LogRecord) -> bool:
        """As a filter of the standard library's logging."""
        dropped = self.suppressed(f"{record.name}: {record.msg}"[:200])
        if dropped:
            record.msg = f"{record.msg} (and {dropped} more)"
        return dropped is not None


def configure_logs(part_id: str) -> None:
    """Set up structlog and the standard library's logging for this process; call once, from an entry point."""
    json_lines = os.environ.get("SEPT_LOG") == "json"
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json_lines else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    rate = OncePerSecond()
    structlog.configure(
        processors=[
            rate.of_structlog,
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
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(rate.of_logging)
    logging.basicConfig(
        handlers=[handler], level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
