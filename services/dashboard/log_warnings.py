"""The last warnings and errors that the parts of a local run wrote into its logs."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from services.run_folder import RunFolder, last_lines

TAIL_BYTES = 1 << 17
"""How much of each log's end is looked at."""

Level = Literal["warning", "error"]


class LogWarning(BaseModel):
    """A warning or an error."""

    model_config = ConfigDict(frozen=True)

    part: str
    level: Level
    time_s: float | None
    """Unix seconds; None when the line does not say."""
    text: str


_LEVELS: dict[str, Level] = {"warning": "warning", "error": "error", "critical": "error", "exception": "error"}
_SUPERVISOR: dict[str, Level] = {"part_died": "warning", "part_killed": "warning", "run_failed": "error"}
"""Events of the supervisor's log that a person should see."""

_CONSOLE = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT[\d:.]+Z) \[(?P<level>\w+)\s*\] (?P<text>.*)")
_STANDARD = re.compile(r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (?P<level>WARNING|ERROR|CRITICAL) (?P<text>.*)")
_LAST_WORDS = re.compile(r"(?P<level>sept|ERROR|Error|hint)\b: ?(?P<text>.+)")
"""What `sept` writes when a part ends, and what libraries write that do not use logging."""


def last_warnings(folder: RunFolder, count: int) -> list[LogWarning]:
    """The newest `count` warnings and errors of all logs of the run, newest first."""
    found: list[LogWarning] = []
    for path in folder.log_files().values():
        found.extend(_of_log(path))
    return sorted(found, key=lambda warning: warning.time_s or 0.0, reverse=True)[:count]


def _of_log(path: Path) -> list[LogWarning]:
    """A line without a time gets that of the line before it."""
    found: list[LogWarning] = []
    time_s: float | None = None
    for line in last_lines(path, TAIL_BYTES):
        time_s, warning = parse_line(path.stem, line.decode(errors="replace"), time_s)
        if warning is not None:
            found.append(warning)
    return found


def parse_line(part: str, line: str, before_s: float | None = None) -> tuple[float | None, LogWarning | None]:
    """The line's time (`before_s` when it has none) and the warning or error in it, if there is one.

    parse_line("learner", "2026-01-02T03:04:05Z [warning  ] lease_lost task_id=r1")
    """
    if line.startswith("{"):
        return _of_json(part, line, before_s)
    match = _CONSOLE.match(line) or _STANDARD.match(line)
    if match is not None:
        time_s = _seconds(match["time"])
        return time_s, _warning(part, _LEVELS.get(match["level"].lower()), time_s, match["text"])
    last_words = _LAST_WORDS.match(line)
    if last_words is not None:
        level: Level = "warning" if last_words["level"] == "hint" else "error"
        return before_s, _warning(part, level, before_s, line)
    return before_s, None


def _of_json(part: str, line: str, before_s: float | None) -> tuple[float | None, LogWarning | None]:
    try:
        values = json.loads(line)
    except ValueError:
        return before_s, None
    event = str(values.get("event", ""))
    level = _SUPERVISOR.get(event) or _LEVELS.get(str(values.get("level", "")))
    time_s = values["time"] if isinstance(values.get("time"), int | float) else _seconds(values.get("timestamp", ""))
    known = {"event", "level", "time", "timestamp", "part"} if part != "supervisor" else {"event", "level", "time"}
    rest = " ".join(f"{key}={value}" for key, value in values.items() if key not in known)
    return time_s or before_s, _warning(part, level, time_s or before_s, f"{event} {rest}".strip())


def _warning(part: str, level: Level | None, time_s: float | None, text: str) -> LogWarning | None:
    # columns of the console's lines are padded for people at a terminal
    return LogWarning(part=part, level=level, time_s=time_s, text=" ".join(text.split())[:1000]) if level else None


def _seconds(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
