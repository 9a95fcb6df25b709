"""Finds questions that repeat another: word for word, or nearly. Among the training questions, and of benchmarks.

Two questions are the same when their words and symbols are, whatever the case, spacing, punctuation and LaTeX around
them. They are nearly the same when all their numbers agree and at least NEAR of their pairs of neighbouring words do;
other numbers make another problem, and so do other reference answers among training questions. Which questions might
be nearly the same is found by MinHash in bands (Broder 1997), so that not every pair is compared.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import structlog

from learner.data.prompts import Prompt
from services.errors import DataError

NEAR = 0.8
"""Least share of common pairs of words among all pairs of two questions (Jaccard)."""
FEWEST_WORDS = 8
"""A question of fewer words and symbols repeats another only word for word."""
BANDS, ROWS = 16, 4
"""Questions with a Jaccard index of 0.8 share one of 16 bands of 4 hashes with probability 0.9998."""
NAMED = 3
"""Repeats that the log names."""

_LATEX = re.compile(r"\\(?:left|right|text|mathrm|displaystyle|quad|qquad|,|;|!| )")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[-+*/^=<>%|()\[\]]")
_DRAWN = np.random.Generator(np.random.PCG64(0)).integers(0, 2**63, (2, BANDS * ROWS), dtype=np.uint64)
_FACTORS, _SHIFTS = _DRAWN[0] * np.uint64(2) + np.uint64(1), _DRAWN[1]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Repeat:
    """A training question that should not be trained on a second time, or at all."""

    index: int
    """Of the prompt."""
    of: str
    """Where the other question stands."""
    exact: bool
    benchmark: str = ""
    """The benchmark that has the other question; empty: it is a training question, too."""


@dataclass(frozen=True, slots=True)
class BenchmarkQuestions:
    """What must not be trained on."""

    name: str
    questions: Sequence[str]


def without_repeats(
    prompts: Sequence[Prompt], benchmarks: Sequence[BenchmarkQuestions], rule: Literal["keep", "leave_out", "refuse"]
) -> list[Prompt]:
    """The prompts without repeats, as `data.repeats` says; the log says how many there are.

    keep: all of them; only those that are word for word the same are counted, which takes no time. refuse: DataError
    for the first one. DataError, too, when none is left.
    """
    found = find_repeats(prompts, benchmarks, near=rule != "keep")
    if not found:
        return list(prompts)
    said = [f"{prompts[one.index].where} repeats {one.of}" for one in found[:NAMED]]
    if rule == "refuse":
        raise DataError(
            f"{said[0]}, and {len(found)} questions repeat one in all",
            hint='drop them, or let data.repeats = "leave_out" do it; "keep" trains on them',
        )
    kept = list(prompts)
    if rule == "leave_out":
        dropped = {one.index for one in found}
        kept = [prompt for index, prompt in enumerate(prompts) if index not in dropped]
    log.warning(
        "repeated_questions",
        left_out=len(prompts) - len(kept),
        same=sum(one.exact and not one.benchmark for one in found),
        nearly_the_same=sum(not one.exact and not one.benchmark for one in found),
        in_benchmarks={
            benchmark.name: count
            for benchmark in benchmarks
            if (count := sum(one.benchmark == benchmark.name for one in found))
        },
        first=said,
    )
    if not kept:
        raise DataError("every prompt is a question of a benchmark", hint="train on other questions")
    return kept


def find_repeats(prompts: Sequence[Prompt], benchmarks: Iterable[BenchmarkQuestions], *, near: bool) -> list[Repeat]:
    """In the order of the prompts, each once; `near`: also those that are nearly the same."""
    known = _KnownQuestions(near=near)
    for benchmark in benchmarks:
        for number, text in enumerate(benchmark.questions):
            known.add(_words_of(text), None, f"{benchmark.name} question {number}", benchmark.name)
    found = []
    for index, prompt in enumerate(prompts):
        words = _words_of(prompt.question)
        match = known.find(words, prompt.answer)
        if match is None:
            known.add(words, prompt.answer, prompt.where or f"row {prompt.row}", "")
        else:
            other, exact = match
            found.append(Repeat(index, other.where, exact, other.benchmark))
    return found


@dataclass(frozen=True, slots=True)
class _Known:
    words: tuple[str, ...]
    pairs: frozenset[int]
    answer: str | None
    where: str
    benchmark: str

    def is_answered_alike(self, answer: str | None) -> bool:
        return bool(self.benchmark) or self.answer is None or answer is None or self.answer == answer


class _KnownQuestions:
    """Questions by their words, and by the bands of their hashes."""

    def __init__(self, *, near: bool) -> None:
        self._near = near
        self._by_words: dict[tuple[str, ...], list[_Known]] = {}
        self._by_band: dict[tuple[object, ...], list[_Known]] = {}

    def add(self, words: tuple[str, ...], answer: str | None, where: str, benchmark: str) -> None:
        pairs = _pairs_of(words) if self._near else frozenset()
        one = _Known(words, pairs, answer, where, benchmark)
        self._by_words.setdefault(words, []).append(one)
        for band in self._bands(words, pairs):
            self._by_band.setdefault(band, []).append(one)

    def find(self, words: tuple[str, ...], answer: str | None) -> tuple[_Known, bool] | None:
        """A known question that these words repeat, and whether word for word."""
        for one in self._by_words.get(words, ()):
            if one.is_answered_alike(answer):
                return one, True
        pairs = _pairs_of(words) if self._near else frozenset()
        for band in self._bands(words, pairs):
            for one in self._by_band.get(band, ()):
                common = len(pairs & one.pairs)
                is_near = common >= NEAR * (len(pairs) + len(one.pairs) - common)
                if is_near and one.words != words and one.is_answered_alike(answer):
                    return one, False
        return None

    def _bands(self, words: tuple[str, ...], pairs: frozenset[int]) -> list[tuple[object, ...]]:
        """Keys under which questions that might be nearly the same meet; their numbers are part of them."""
        if not self._near or len(words) < FEWEST_WORDS:
            return []
        hashes = np.fromiter(pairs, np.uint64, len(pairs))[:, None]
        lowest = (hashes * _FACTORS + _SHIFTS).min(axis=0).reshape(BANDS, ROWS)
        numbers = tuple(word for word in words if word[:1].isdigit())
        return [(number, numbers, band.tobytes()) for number, band in enumerate(lowest)]


def _words_of(text: str) -> tuple[str, ...]:
    plain = _LATEX.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return tuple(_WORD.findall(plain)) or (plain,)


def _pairs_of(words: tuple[str, ...]) -> frozenset[int]:
    """Hashes of neighbouring words, numbers left out: they are compared apart."""
    said = [word for word in words if not word[:1].isdigit()]
    return frozenset(zlib.crc32(f"{one} {other}".encode()) for one, other in pairwise(said))
