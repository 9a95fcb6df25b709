"""The supervisor's log: what happened to the parts of a local run, for people, for the log file, for flight records."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

REMEMBERED = 200
"""Events that a flight record holds."""


class SupervisorLog:
    """Appends events to a file, remembers the last ones and shows each to a listener.

    log.record("part_died", part="generator-1", exit_code=-9)
    """

    def __init__(self, path: Path, listener: Callable[[str], None]) -> None:
        self._path = path
        self._listener = listener
        self._events: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)

    def record(self, kind: str, **fields: Any) -> None:
        """Append the event; on a full disk it is only remembered and shown, as a run must not end over its log."""
        event = {"time": round(time.time(), 3), "event": kind, **fields}
        self._events.append(event)
        with contextlib.suppress(OSError), self._path.open("a") as file:
            file.write(json.dumps(event) + "\n")
        self._listener(f"{kind} " + " ".join(f"{key}={value}" for key, value in fields.items()))

    @property
    def last_events(self) -> list[dict[str, Any]]:
        return list(self._events)
