"""Finds rollouts in the recorded rounds of a run, newest first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from services.run_folder import RunFolder

MAX_BYTES_SEARCHED = 64 << 20
"""A search reads little more than this; its answer says where to continue."""


class RolloutRecord(BaseModel):
    """One rollout as the learner recorded it; fields of later releases are passed on as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    rollout_id: str
    round: int
    question: str
    truth: str | None = None
    answer: str
    temperature: float
    finish_reason: str
    response_tokens: int
    spans: list[tuple[int, int, int]]
    """weight_version, first token, one past the last."""
    staleness: int
    nll: float | None = None
    reward: float | None = None
    """Mean per response token when it was trained; None when it was not finite."""
    generator_id: str


class SearchPosition(BaseModel):
    """Where a search stopped."""

    round: int
    line: int


class SearchResult(BaseModel):
    """Answer of a search."""

    records: list[RolloutRecord]
    first_round: int | None
    """Oldest recorded round; None: nothing is recorded."""
    last_round: int | None
    next_position: SearchPosition | None
    """Search from here for more; None: everything was searched."""


class RolloutSearch:
    """The rollouts of one run's folder."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def search(self, text: str = "", *, start: SearchPosition | None = None, limit: int = 50) -> SearchResult:
        """Rollouts whose question or answer contains `text`, in any case; newest round first, then in task order.

        `start` is a round and a line in it: earlier rounds follow.
        """
        files = self._folder.rollout_files()
        wanted = text.casefold()
        records: list[RolloutRecord] = []
        read_bytes = 0
        next_position: SearchPosition | None = None
        for position, size, record in self._walk(files, start):
            read_bytes += size
            if len(records) == limit or read_bytes > MAX_BYTES_SEARCHED:
                next_position = position
                break
            if record and (wanted in record.question.casefold() or wanted in record.answer.casefold()):
                records.append(record)
        return SearchResult(
            records=records,
            first_round=files[0][0] if files else None,
            last_round=files[-1][0] if files else None,
            next_position=next_position,
        )

    def staleness(self) -> dict[int, int]:
        """How many rollouts of the newest recorded round have which staleness."""
        newest = self._folder.rollout_files()[-1:]
        return dict(sorted(Counter(record.staleness for _, _, record in self._walk(newest, None) if record).items()))

    def _walk(
        self, files: list[tuple[int, Path]], start: SearchPosition | None
    ) -> Iterator[tuple[SearchPosition, int, RolloutRecord | None]]:
        """Every line from `start` on with its place and size; None for one that is no rollout."""
        for number, path in reversed(files):
            if start is not None and number > start.round:
                continue
            first = start.line if start is not None and number == start.round else 0
            for line_number, line in enumerate(_lines(path)):
                if line_number >= first:
                    yield SearchPosition(round=number, line=line_number), len(line), _parse(line)


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []  # cut back while we looked


def _parse(line: bytes) -> RolloutRecord | None:
    try:
        # NaN is no JSON, but Python writes it
        return RolloutRecord.model_validate(json.loads(line, parse_constant=lambda _: None))
    except (ValueError, ValidationError):
        return None  # of another release, or damaged: the rest is still worth finding
