"""Finds rollouts in the recorded rounds of a run, newest first."""

from __future__ import annotations

import heapq
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    """Mean per response token when it was trained; None when it was not finite."""
    reward: float | None = None
    position: int = 0
    """Of its prompt in the round: the answers of a group share it."""
    correct: bool | None = None
    """Whether it was graded so."""
    vote: bool | None = None
    """Whether it is one of the answers that most of its group gave."""
    generator_id: str
    token_lengths: str | None = None
    """Base64 of a byte a response token: characters of the answer that it adds. None where they are not known."""
    token_log_probs: str | None = None
    """Base64 of a byte a response token: -16 times its log-probability, rounded, at most 255."""


class RolloutFilter(BaseModel):
    """Which rollouts are wanted; what is not set admits all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(default="", max_length=1000)
    """In question or answer, in any case."""
    like: str = Field(default="", pattern=r"^(r[0-9]{1,9}-[0-9]{1,9}\.[0-9]{1,9})?$")
    """The rollout of this id, or those that are related to it."""
    relation: Literal["self", "group", "question"] = "self"
    """Only `like` itself, all answers of its group, or all answers to its question."""
    ended_by: str = Field(default="", max_length=100)
    verdict: Literal["", "right", "wrong"] = ""
    """As graded, else by the vote of its group; where neither was done, no rollout has a verdict."""
    version: int | None = Field(default=None, ge=0)
    """It sampled at least one of the tokens."""
    temperature: float | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    min_reward: float | None = None
    max_reward: float | None = None

    def admits(self, record: RolloutRecord) -> bool:
        """Whether the record is wanted, `like` aside."""
        wanted = self.text.casefold()
        return (
            (wanted in record.question.casefold() or wanted in record.answer.casefold())
            and self.ended_by in ("", record.finish_reason)
            and (not self.verdict or verdict_of(record) == self.verdict)
            and (self.version is None or any(span[0] == self.version for span in record.spans))
            and (self.temperature is None or abs(record.temperature - self.temperature) < 1e-6)
            and _within(record.response_tokens, self.min_tokens, self.max_tokens)
            and _within(record.reward, self.min_reward, self.max_reward)
        )


def verdict_of(record: RolloutRecord) -> str:
    """ "right" or "wrong" as graded, else by the vote of its group; empty where neither was done."""
    judged = record.correct if record.correct is not None else record.vote
    return "" if judged is None else "right" if judged else "wrong"


def _within(value: float | None, low: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    return value is not None and (low is None or value >= low) and (high is None or value <= high)


Order = Literal["newest", "longest", "shortest", "highest reward", "lowest reward", "least likely", "most likely"]

_RANKS: dict[Order, Callable[[RolloutRecord], float | None]] = {
    "longest": lambda record: record.response_tokens,
    "shortest": lambda record: -record.response_tokens,
    "highest reward": lambda record: record.reward,
    "lowest reward": lambda record: None if record.reward is None else -record.reward,
    "least likely": lambda record: record.nll,
    "most likely": lambda record: None if record.nll is None else -record.nll,
}

_ID = re.compile(r"r([0-9]+)-")


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

    def search(
        self,
        wanted: RolloutFilter | None = None,
        *,
        start: SearchPosition | None = None,
        limit: int = 50,
        order: Order = "newest",
    ) -> SearchResult:
        """The wanted rollouts; newest round first, then in task order, from `start` back.

        Any other order ranks all that were searched, and shows the first `limit` of them.
        """
        wanted = wanted or RolloutFilter()
        files = self._folder.rollout_files()
        admitted: Callable[[RolloutRecord], bool] | None = wanted.admits
        if wanted.like:
            admitted = self._related_to(wanted)
            if wanted.relation != "question":  # then they are all in one round
                files = [(number, path) for number, path in files if number == _round_of(wanted.like)]
        ranked = order != "newest"
        records: list[RolloutRecord] = []
        read_bytes = 0
        next_position: SearchPosition | None = None
        for position, size, record in self._walk(files if admitted else [], start):
            read_bytes += size
            if (len(records) == limit and not ranked) or read_bytes > MAX_BYTES_SEARCHED:
                next_position = position
                break
            if admitted and record and admitted(record):
                records.append(record)
        if ranked:
            known = [(rank, record) for record in records if (rank := _RANKS[order](record)) is not None]
            records = [record for _, record in heapq.nlargest(limit, known, key=lambda pair: pair[0])]
        recorded = self._folder.rollout_files()
        return SearchResult(
            records=records,
            first_round=recorded[0][0] if recorded else None,
            last_round=recorded[-1][0] if recorded else None,
            next_position=next_position,
        )

    def _related_to(self, wanted: RolloutFilter) -> Callable[[RolloutRecord], bool] | None:
        """What is related to the rollout in the way that is wanted; None where there is no such rollout."""
        round_ = _round_of(wanted.like)
        lines = self._walk([(round_, self._folder.rollouts_of(round_))], None)
        found = next((record for _, _, record in lines if record and record.rollout_id == wanted.like), None)
        if found is None:
            return None
        if wanted.relation == "question":
            return lambda record: record.question == found.question and wanted.admits(record)
        if wanted.relation == "group":
            return lambda record: record.position == found.position
        return lambda record: record.rollout_id == found.rollout_id

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


def _round_of(rollout_id: str) -> int:
    match = _ID.match(rollout_id)
    return int(match[1]) if match else -1


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
