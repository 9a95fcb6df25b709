"""Numbers of an append-only .jsonl file by column. A refresh reads only what was appended."""

from __future__ import annotations

import json
import math
import secrets
import threading
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from services.contracts import EvaluationMetrics

DIGITS = 6
"""Significant digits that are sent: more than a screen has pixels."""
TIMES = frozenset({"time"})
KEY_DIGITS = 13
"""Of a column of Unix times: milliseconds."""
TOTALS = {"tokens": ("prompt_tokens", "response_tokens")}
"""Columns that sum up others over all lines so far, for those lines that have them."""

Numbers = list[float | None]


class Band(BaseModel):
    """One column over the buckets of a window; None where no line had the field."""

    mean: Numbers
    low: Numbers | None = None
    """Least of each bucket; None when each bucket is one line."""
    high: Numbers | None = None


class Window(BaseModel):
    """A stretch of the file, reduced to so many buckets of consecutive lines.

    The first and the last line are buckets of their own, so that the ends are exact.
    """

    generation: int
    """Changes when the file was written anew instead of appended to."""
    lines: int
    """Lines in the whole file."""
    per_bucket: int
    mark: str
    """Names these buckets: as long as it is the same, those that are `complete` stay as they are."""
    first_bucket: int
    """The columns begin with this bucket: the caller holds those before it."""
    complete: int
    """Buckets that nothing is added to any more."""
    columns: dict[str, Band]
    newest: dict[str, float]
    """The last number of each column, exactly."""


class TimeSeries:
    """A growing file as one float array per field; 8 bytes a number, so that days of history stay small.

    columns = TimeSeries(folder.metrics)
    columns.window("round", low=100, high=200, buckets=400)

    Safe for many threads: every open page reads it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = secrets.token_hex(4)
        self.generation = 0
        self.lines = 0
        self._inode: int | None = None
        self._offset = 0
        self._columns: dict[str, array[float]] = {}
        self._totals: dict[str, float] = {}
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Read the lines appended since the last time; start over when the file was replaced or is shorter."""
        with self._lock:
            self._take_in()

    def tag(self) -> str:
        """Names what is in the file by now: the same tag is the same content, also after a restart of the reader."""
        with self._lock:
            self._take_in()
            return f"{self._reader}-{self.generation}-{self._offset}"

    def window(
        self,
        key: str,
        *,
        low: float | None = None,
        high: float | None = None,
        buckets: int = 400,
        mark: str = "",
        have: int = 0,
    ) -> Window:
        """The lines by now whose `key` lies in low .. high; `key` ascends down the file.

        Lines are joined into at most `buckets` runs of equal length: their mean, least and greatest are kept, so that
        no spike is lost. A caller that holds the first `have` buckets of the window with that `mark` gets the rest.
        """
        with self._lock:
            self._take_in()
            keys = np.array(self._columns.get(key, array("d")))
            start = 0 if low is None else int(np.searchsorted(keys, low, side="left"))
            stop = len(keys) if high is None else int(np.searchsorted(keys, high, side="right"))
            columns = {name: np.array(values[start:stop]) for name, values in self._columns.items()}
            generation, lines = self.generation, self.lines
        count = max(0, stop - start)
        per_bucket = _per_bucket(count, buckets)
        starts = _starts(count, per_bucket)
        now = f"{self._reader}-{generation}-{start}-{per_bucket}"
        complete = 1 + (count - 2) // per_bucket if count > 1 else 0
        first = min(have, complete) if mark == now else 0
        bands = {name: _band(values, starts, first, per_bucket, _digits(name)) for name, values in columns.items()}
        newest = {
            name: float(known[-1]) for name, values in columns.items() if (known := values[~np.isnan(values)]).size
        }
        return Window(
            generation=generation,
            lines=lines,
            per_bucket=per_bucket,
            mark=now,
            first_bucket=first,
            complete=complete,
            columns=bands,
            newest=newest,
        )

    def greatest(self, name: str) -> float | None:
        """The greatest number of a column by now; None where there is none."""
        with self._lock:
            self._take_in()
            values = np.array(self._columns.get(name, array("d")))
        return float(np.nanmax(values)) if np.isfinite(values).any() else None

    def names(self) -> list[str]:
        """The columns by now."""
        with self._lock:
            self._take_in()
            return list(self._columns)

    def _take_in(self) -> None:
        try:
            with self._path.open("rb") as file:
                status = self._path.stat()
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._reset(status.st_ino)
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # still being written
                    self._offset += len(line)
                    self._add(line)
        except FileNotFoundError:
            if self._inode is not None:
                self._reset(None)

    def _reset(self, inode: int | None) -> None:
        self.generation += 1
        self.lines, self._offset, self._inode, self._columns, self._totals = 0, 0, inode, {}, {}

    def _add(self, line: bytes) -> None:
        try:
            values: Any = json.loads(line)
        except ValueError:
            return  # cut short by a crash
        if not isinstance(values, dict):
            return
        numbers = _numbers_of(values)
        numbers |= self._total(numbers)
        for name in numbers:
            if name not in self._columns:
                self._columns[name] = array("d", [math.nan] * self.lines)
        for name, column in self._columns.items():
            column.append(numbers.get(name, math.nan))
        self.lines += 1

    def _total(self, numbers: dict[str, float]) -> dict[str, float]:
        """The totals up to the line with these numbers."""
        for name, parts in TOTALS.items():
            if parts[0] in numbers:
                self._totals[name] = self._totals.get(name, 0.0) + sum(numbers.get(part, 0.0) for part in parts)
        return {name: total for name, total in self._totals.items() if TOTALS[name][0] in numbers}


def _numbers_of(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of one line; those of evaluations are named "pass@K BENCHMARK, TEMPERATURE".

    Round 0's line may hold those of version 0 and of version 1: what training started from is what is shown.
    """
    found = {
        name: float(value)
        for name, value in line.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    try:
        for measured in map(EvaluationMetrics.model_validate, line.get("evaluations", ())):
            for benchmark, by_k in measured.pass_at_k.items():
                of = f"{benchmark}, {measured.temperature:g}"
                found = {f"pass@{k} {of}": share for k, share in by_k.items()} | found
    except (ValidationError, TypeError):
        pass  # of another release
    return found


def _per_bucket(count: int, buckets: int) -> int:
    """Lines in a bucket: a power of two, so that it seldom changes while the file grows."""
    return 1 << max(0, math.ceil(math.log2(max(1, count - 2) / max(1, buckets - 2))))


def _starts(count: int, per_bucket: int) -> NDArray[np.int64]:
    """The first line of each bucket."""
    if count < 2:
        return np.arange(count)
    return np.concatenate(([0], np.arange(1, count - 1, per_bucket), [count - 1]))


def _digits(name: str) -> int:
    return KEY_DIGITS if name in TIMES else DIGITS


def _band(values: NDArray[np.float64], starts: NDArray[np.int64], first: int, per_bucket: int, digits: int) -> Band:
    """The buckets from the `first` on."""
    if first >= starts.size:
        return Band(mean=[])
    values, starts = values[starts[first] :], starts[first:] - starts[first]
    if per_bucket == 1:
        return Band(mean=_rounded(values, digits))
    known = np.isfinite(values)
    counts = np.add.reduceat(known.astype(np.float64), starts)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return Band(
        mean=_rounded(means, digits),
        low=_rounded(np.fmin.reduceat(values, starts), digits),
        high=_rounded(np.fmax.reduceat(values, starts), digits),
    )


def _rounded(values: NDArray[np.float64], digits: int) -> Numbers:
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]
