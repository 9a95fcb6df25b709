"""The last warnings and errors that the parts of a local run wrote into its logs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from services.dashboard.log_lines import LogLine, parse_lines
from services.run_folder import RunFolder, last_lines

TAIL_BYTES = 1 << 17
"""How much of each log's end is looked at."""


class LogWarning(BaseModel):
    """A warning or an error."""

    model_config = ConfigDict(frozen=True)

    part: str
    level: Literal["warning", "error"]
    time_s: float | None
    """Unix seconds; None when the log does not say."""
    text: str


def last_warnings(folder: RunFolder, count: int) -> list[LogWarning]:
    """The newest `count` warnings and errors of all logs of the run, newest first."""
    found: list[LogWarning] = []
    for part, path in folder.log_files().items():
        lines = (line.decode(errors="replace") for line in last_lines(path, TAIL_BYTES))
        found.extend(warning for line in parse_lines(part, lines) if (warning := _warning(line)) is not None)
    return sorted(found, key=lambda warning: warning.time_s or 0.0, reverse=True)[:count]


def _warning(line: LogLine) -> LogWarning | None:
    if line.level == "info":
        return None
    return LogWarning(part=line.part, level=line.level, time_s=line.time_s, text=" ".join(line.text.split())[:1000])
