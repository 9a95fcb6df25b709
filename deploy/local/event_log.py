"""What the supervisor saw, for the person watching, for the log, and for the flight record of a run that failed."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from deploy.local.processes import last_words
from services import durable
from services.run_folder import RunFolder

REMEMBERED = 200
"""Events that a flight record holds."""

RECORDED_LINES = 60
"""Log lines of each part that a flight record holds."""


class Journal:
    """Appends events to a file, remembers the last ones and shows each to a listener.

    journal.note("part_died", part="generator-1", exit_code=-9)
    """

    def __init__(self, path: Path, listener: Callable[[str], None]) -> None:
        self._path = path
        self._listener = listener
        self._events: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)

    def note(self, kind: str, **fields: Any) -> None:
        event = {"time": round(time.time(), 3), "event": kind, **fields}
        self._events.append(event)
        with durable.explained(self._path), self._path.open("a") as file:
            file.write(json.dumps(event) + "\n")
        self._listener(f"{kind} " + " ".join(f"{key}={value}" for key, value in fields.items()))

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(self._events)


def write_flight_record(
    folder: RunFolder, journal: Journal, reason: str, shared: Iterable[dict[str, Any]] = ()
) -> Path:
    """Keep what is needed to find out why a run failed: events, the parts' shared events, the ends of all logs."""
    record = {
        "reason": reason,
        "time": time.time(),
        "supervisor": journal.events,
        "parts": list(shared),
        "logs": {log.stem: last_words(log, RECORDED_LINES) for log in sorted(folder.logs.glob("*.log"))},
    }
    path = folder.path / f"flight-{time.strftime('%Y%m%dT%H%M%S')}.json"
    durable.write_file(path, json.dumps(record, indent=1) + "\n")
    return path
