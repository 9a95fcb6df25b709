"""What the parts of a local run have written, a file each, and what they go on writing. Knows no format of lines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from services.errors import ConfigError
from services.run_folder import RunFolder

LOOK_EVERY_S = 0.2
LOOK_BACK_BYTES = 1 << 20
"""The last lines are looked for in so much of a log."""

Line = tuple[str, str]
"""A part and what it wrote, without the line's end."""


class Logbook:
    """The logs of some parts (of all when none is named), from their last lines on; parts may come later.

    book = Logbook(folder, ["learner"], lines=20)
    for part, line in book.new():            the last 20 lines; the next time, what came since

    Raises ConfigError for a part that has written nothing; says which have.
    """

    def __init__(self, folder: RunFolder, parts: Sequence[str] = (), *, lines: int) -> None:
        self._folder = folder
        self._parts = parts
        known = [path.stem for path in sorted(folder.logs.glob("*.log"))]
        if unknown := [part for part in parts if part not in known]:
            raise ConfigError(
                f"{folder.logs} has no log of {unknown[0]}",
                hint=f"name one of {', '.join(known)}" if known else "only runs of this machine have logs there",
            )
        self._read = {path: _start_of_last(path, lines) for path in self._files()}

    def new(self) -> Iterator[Line]:
        """Whole lines that were not given out yet, part by part."""
        for path in self._files():
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, end, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(end)
            if end:
                yield from ((path.stem, line) for line in whole.decode(errors="replace").split("\n"))

    def follow(self, goes_on: Callable[[], bool]) -> Iterator[Line]:
        """Lines as they come, for as long as `goes_on` says."""
        while goes_on():
            yield from self.new()
            time.sleep(LOOK_EVERY_S)
        yield from self.new()

    def _files(self) -> list[Path]:
        return [path for path in sorted(self._folder.logs.glob("*.log")) if not self._parts or path.stem in self._parts]


def _start_of_last(path: Path, lines: int) -> int:
    """Where the last `lines` lines of the file begin."""
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - LOOK_BACK_BYTES)
        file.seek(start)
        content = file.read()
    position = content.rfind(b"\n")
    for _ in range(lines):
        if position < 0:
            return start
        position = content.rfind(b"\n", 0, position)
    return start + position + 1
