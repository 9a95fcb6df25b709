"""The last lines of the logs of a local run's parts, and new lines as they are written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from services.errors import ConfigError
from services.run_folder import RunFolder

READ_EVERY_S = 0.2
SEARCHED_BYTES = 1 << 20
"""The last lines are looked for in this much of a log's end."""

Line = tuple[str, str]
"""A part and what it wrote, without the line's end."""


class LogTail:
    """The logs of some parts (of all when none is named), from their last lines on; parts may start later.

    tail = LogTail(folder, ["learner"], lines=20)
    for part, line in tail.new_lines():            the last 20 lines; in the next call, what was written since

    Raises ConfigError for a part that has no log; the hint names those that have one.
    """

    def __init__(self, folder: RunFolder, parts: Sequence[str] = (), *, lines: int) -> None:
        self._folder = folder
        self._parts = parts
        known = list(folder.log_files())
        if unknown := [part for part in parts if part not in known]:
            raise ConfigError(
                f"{folder.logs} has no log of {unknown[0]}",
                hint=f"name one of {', '.join(known)}" if known else "only runs of this machine have logs there",
            )
        self._read = {path: _start_of_last(path, lines) for path in self._files()}

    def new_lines(self) -> Iterator[Line]:
        """Complete lines that were not returned yet, part by part."""
        for path in self._files():
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, end, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(end)
            if end:
                yield from ((path.stem, line) for line in whole.decode(errors="replace").split("\n"))

    def follow(self, is_active: Callable[[], bool]) -> Iterator[Line]:
        """Lines as they are written, until `is_active` is false."""
        while is_active():
            yield from self.new_lines()
            time.sleep(READ_EVERY_S)
        yield from self.new_lines()

    def _files(self) -> list[Path]:
        return [path for part, path in self._folder.log_files().items() if not self._parts or part in self._parts]


def _start_of_last(path: Path, lines: int) -> int:
    """Where the last `lines` lines of the file begin."""
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - SEARCHED_BYTES)
        file.seek(start)
        content = file.read()
    position = content.rfind(b"\n")
    for _ in range(lines):
        if position < 0:
            return start
        position = content.rfind(b"\n", 0, position)
    return start + position + 1
