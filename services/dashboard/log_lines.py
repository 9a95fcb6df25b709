"""One line of a part's log, taken apart: when it was written, how serious it is, what it says.

A log holds lines of sept (for people or as JSON), of Python's logging, of vLLM and of Redis, and what other libraries
print.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class LogLine:
    """What a part wrote."""

    part: str
    time_s: float | None
    """Unix seconds; of a line without a time, that of the line before it. None when no line before has one."""
    level: Level
    """Of sept and of Python's logging. Lines of an engine and of Redis are "info": both warn of what is normal."""
    text: str
    """Without time, level and part."""


_LEVELS: dict[str, Level] = {"warning": "warning", "error": "error", "critical": "error", "exception": "error"}
_SUPERVISOR: dict[str, Level] = {"part_died": "warning", "part_killed": "warning", "run_failed": "error"}
"""Events of the supervisor's log that a person should see."""

_CONSOLE = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT[\d:.]+Z) \[(?P<level>\w+)\s*\] (?P<text>.*)")
_STANDARD = re.compile(r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+) (?P<level>[A-Z]+) (?P<text>.*)")
_VLLM = re.compile(r"(?:\([^)]*\) )?(?P<level>[A-Z]+) (?P<time>\d\d-\d\d \d\d:\d\d:\d\d) (?P<text>\[.*)")
_REDIS = re.compile(r"\d+:[A-Z] (?P<time>\d\d \w{3} \d{4} \d\d:\d\d:\d\d\.\d{3}) . (?P<text>.*)")
_LAST_WORDS = re.compile(r"(?P<level>sept|ERROR|Error|hint)\b: ?(?P<text>.+)")
"""What `sept` writes when a part ends, and what libraries write that do not use logging."""


def parse_lines(part: str, lines: Iterable[str], before_s: float | None = None) -> Iterator[LogLine]:
    """The lines of one log in their order; `before_s`: the time of the line before the first.

    Times never fall, also where a clock was set back.
    """
    for line in lines:
        parsed = _parse(part, line, before_s)
        if parsed.time_s is not None and (before_s is None or parsed.time_s > before_s):
            before_s = parsed.time_s
        yield LogLine(part, before_s, parsed.level, parsed.text)


def _parse(part: str, line: str, before_s: float | None) -> LogLine:
    if line.startswith("{") and (values := _as_object(line)) is not None:
        return _of_json(part, values)
    if match := _CONSOLE.match(line):
        # columns are padded for people who read the file
        text = re.sub(r" {2,}", " ", match["text"]).replace(f" part={part}", "", 1)
        return LogLine(part, _iso_seconds(match["time"]), _LEVELS.get(match["level"], "info"), text)
    if match := _STANDARD.match(line):
        level = _LEVELS.get(match["level"].lower(), "info")
        return LogLine(part, _iso_seconds(match["time"].replace(",", ".")), level, match["text"])
    if match := _VLLM.match(line):
        return LogLine(part, _engine_seconds(match["time"], before_s), "info", f"{match['level']} {match['text']}")
    if match := _REDIS.match(line):
        return LogLine(
            part, datetime.strptime(match["time"], "%d %b %Y %H:%M:%S.%f").timestamp(), "info", match["text"]
        )
    if match := _LAST_WORDS.match(line):
        return LogLine(part, None, "warning" if match["level"] == "hint" else "error", line)
    return LogLine(part, None, "info", line)


def _as_object(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _of_json(part: str, values: dict[str, Any]) -> LogLine:
    event, at = str(values.get("event", "")), values.get("time")
    level = _SUPERVISOR.get(event) or _LEVELS.get(str(values.get("level", "")), "info")
    time_s = float(at) if isinstance(at, int | float) else _iso_seconds(values.get("timestamp", ""))
    known = {"event", "level", "time", "timestamp"}
    rest = [f"{key}={value}" for key, value in values.items() if key not in known and (key, value) != ("part", part)]
    return LogLine(part, time_s, level, " ".join([event, *rest]).strip())


def _iso_seconds(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def _engine_seconds(text: str, before_s: float | None) -> float | None:
    """vLLM writes no year: the one in which the line lies closest to the line before it, or to now."""
    near = datetime.now(UTC) if before_s is None else datetime.fromtimestamp(before_s, UTC)
    found = []
    for year in (near.year - 1, near.year, near.year + 1):
        try:
            found.append(datetime.strptime(f"{year}-{text}", "%Y-%m-%d %H:%M:%S").astimezone())
        except ValueError:
            continue  # 29 February
    return min(found, key=lambda one: abs(one - near)).timestamp() if found else None
