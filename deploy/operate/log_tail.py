"""The logs of a local run's parts as one stream in the order of time: its end, and new lines as they are written."""

from __future__ import annotations

import heapq
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from services.dashboard.log_lines import LogLine, parse_lines
from services.errors import ConfigError
from services.run_folder import RunFolder

READ_EVERY_S = 0.2
SEARCHED_BYTES = 1 << 20
"""The end of a log is looked for in this much of it first, then in four times as much, and so on."""


class LogTail:
    """The logs of some parts (of all when none is named); parts may start later.

    tail = LogTail(folder, ["learner", "generator-0"])
    for line in tail.last(lines=20):               the last 20 lines of the two together
    for line in tail.new_lines():                  what was written since

    Raises ConfigError for a part that has no log; the hint names those that have one.
    """

    def __init__(self, folder: RunFolder, parts: Sequence[str] = ()) -> None:
        self._folder = folder
        self._parts = parts
        known = list(folder.log_files())
        if unknown := [part for part in parts if part not in known]:
            raise ConfigError(
                f"{folder.logs} has no log of {unknown[0]}",
                hint=f"name one of {', '.join(known)}" if known else "only runs of this machine have logs there",
            )
        self._logs: dict[Path, _PartLog] = {}

    def last(self, *, lines: int | None = None, since_s: float | None = None) -> Iterable[LogLine]:
        """The last `lines` (None: all) of what was written at or after `since_s` in Unix seconds. Call it first."""
        merged = _in_time_order(log.last(lines, since_s) for log in self._known_logs())
        return merged if lines is None else deque(merged, maxlen=lines)

    def new_lines(self) -> Iterator[LogLine]:
        """Complete lines that were not returned yet."""
        return _in_time_order(log.new() for log in self._known_logs())

    def follow(self, is_active: Callable[[], bool]) -> Iterator[LogLine]:
        """Lines as they are written, until `is_active` is false."""
        while is_active():
            yield from self.new_lines()
            time.sleep(READ_EVERY_S)
        yield from self.new_lines()

    def _known_logs(self) -> list[_PartLog]:
        for part, path in self._folder.log_files().items():
            if path not in self._logs and (not self._parts or part in self._parts):
                self._logs[path] = _PartLog(part, path)
        return list(self._logs.values())


class _PartLog:
    """One log, read from wherever it was read to."""

    def __init__(self, part: str, path: Path) -> None:
        self._part = part
        self._path = path
        self._position = 0
        self._time_s: float | None = None
        """Of the last line that was returned."""

    def new(self) -> list[LogLine]:
        with self._path.open("rb") as file:
            file.seek(self._position)
            whole, end, _ = file.read().rpartition(b"\n")
        self._position += len(whole) + len(end)
        return self._parsed(whole.split(b"\n") if end else [])

    def last(self, lines: int | None, since_s: float | None) -> list[LogLine]:
        """The last lines, or more of them."""
        searched = SEARCHED_BYTES
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
        while True:
            self._position, self._time_s = max(0, size - searched), None
            is_whole = self._position == 0
            found = self.new()[0 if is_whole else 1 :]  # the first lacks its beginning
            wanted = [line for line in found if since_s is None or (line.time_s or 0.0) >= since_s]
            if is_whole or len(wanted) < len(found) or (lines is not None and len(found) >= lines):
                return wanted
            searched *= 4

    def _parsed(self, lines: list[bytes]) -> list[LogLine]:
        # of a progress bar, which goes back to the line's beginning, only the last state is left
        texts = (line.decode(errors="replace").rstrip("\r").rpartition("\r")[2] for line in lines)
        parsed = list(parse_lines(self._part, texts, self._time_s))
        if parsed:
            self._time_s = parsed[-1].time_s
        return parsed


def _in_time_order(logs: Iterable[list[LogLine]]) -> Iterator[LogLine]:
    """All lines by time; those of one part keep their order. Lines before the first time of their log go with it."""
    return heapq.merge(*map(_dated, logs), key=lambda line: line.time_s or 0.0)


def _dated(lines: list[LogLine]) -> Iterator[LogLine]:
    first_s = next((line.time_s for line in lines if line.time_s is not None), None)
    for line in lines:
        yield line if line.time_s is not None else LogLine(line.part, first_s, line.level, line.text)
