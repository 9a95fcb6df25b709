"""Sorts the answers of a round's groups into classes and computes their signals, while the rest of the round arrives.

An answer that cannot be graded within the pool's limits on time and memory counts as wrong.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from learner.algorithms.base import Algorithm, Group, GroupSignals, Signal, group_seed
from learner.algorithms.majority_vote import winners
from learner.data.prompts import Prompt
from learner.grading.classes import answer_classes
from learner.grading.pool import GraderPool
from services.contracts import Rollout
from services.errors import DataError

log = structlog.get_logger()

MAX_WORKERS = 8
"""Grading takes milliseconds an answer: more processes than this wait for rollouts, not for each other."""


class JudgedAnswer(NamedTuple):
    """What is known of an answer among the others to its prompt. Producer: SignalWorker. Consumers: loop, records."""

    signal: Signal | None
    """For an algorithm that has signals from texts."""
    class_: int | None
    """Equal answers have the same number; None: there is no answer in the text."""
    won: bool
    """Whether its class has the most votes."""


class SignalWorker:
    """On a thread of its own.

    future = worker.submit(Group(reference="4", answers=("... \\boxed{4}", "5")))
    future.result()     [JudgedAnswer(Signal(weight=0.7, reward=1.0), class_=0, won=True), JudgedAnswer(...)]
    """

    def __init__(
        self,
        signals: GroupSignals | None,
        *,
        workers: int | None = None,
        time_limit_s: float = 10.0,
        strict: bool = False,
    ) -> None:
        """Starts the grading processes; `time_limit_s` is for one answer. `signals`: the algorithm's, None where it has
        none from texts. `workers`: half of the cores by default. `strict`: as in `GraderPool`."""
        self._signals = signals
        self._pool = GraderPool(
            workers or max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // 2)), time_limit_s=time_limit_s, strict=strict
        ).__enter__()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="signals")

    def submit(self, group: Group) -> Future[list[JudgedAnswer]]:
        """Start on one group; [G] by sample."""
        return self._thread.submit(self._judge, group)

    def _judge(self, group: Group) -> list[JudgedAnswer]:
        judge = _GroupJudge(self._pool)
        signals: Sequence[Signal | None] = [None] * len(group.answers)
        if self._signals is not None:
            signals = self._signals(group, judge)
        classes = judge.classes(group.answers)
        return [JudgedAnswer(*known) for known in zip(signals, classes, winners(classes), strict=True)]

    def in_order(
        self, rollouts: Iterable[Rollout], references: Sequence[str], text_of: Callable[[NDArray[np.int32]], str]
    ) -> Iterator[tuple[Rollout, JudgedAnswer]]:
        """A round's rollouts with what is known of them, in the order of the rollouts; `references` are by position.

        A group is submitted when it is complete, and comes out once it is judged; later groups may arrive
        meanwhile.
        """
        pending: deque[tuple[list[Rollout], Future[list[JudgedAnswer]]]] = deque()
        for position, members in groupby(rollouts, key=lambda rollout: rollout.position):
            group = list(members)
            answers = tuple(text_of(rollout.response_tokens) for rollout in group)
            seed = group_seed(position, [rollout.response_tokens for rollout in group])
            pending.append((group, self.submit(Group(references[position], answers, seed))))
            while pending and pending[0][1].done():
                yield from _judged(*pending.popleft())
        for group, future in pending:
            yield from _judged(group, future)

    def close(self) -> None:
        """Drop what is not computed yet."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._pool.close()


class _GroupJudge:
    """The `Judge` of one group, whose classes are found once, whoever asks."""

    def __init__(self, pool: GraderPool) -> None:
        self._pool = pool
        self._classes: dict[tuple[str, ...], list[int | None]] = {}

    def are_correct(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        return [grade.correct for grade in self._pool.grade_many(pairs)]

    def classes(self, answers: Sequence[str]) -> list[int | None]:
        key = tuple(answers)
        if key not in self._classes:
            self._classes[key] = answer_classes(answers, self._pool)
        return self._classes[key]


def _judged(group: list[Rollout], answers: Future[list[JudgedAnswer]]) -> Iterator[tuple[Rollout, JudgedAnswer]]:
    return zip(group, answers.result(), strict=True)


def group_classes(rollouts: Sequence[Rollout], judged: Sequence[JudgedAnswer]) -> dict[int, list[int | None]]:
    """Position -> classes of its answers; `judged` has one a rollout, or none where answers were not compared."""
    classes: dict[int, list[int | None]] = {}
    for rollout, answer in zip(rollouts, judged, strict=bool(judged)):
        classes.setdefault(rollout.position, []).append(answer.class_)
    return classes


def vote_share(classes: Sequence[int | None]) -> float:
    """Share of the answers to one prompt that are in its largest class; 0 when none has an answer."""
    sizes = Counter(class_ for class_ in classes if class_ is not None)
    return max(sizes.values(), default=0) / len(classes)


def vote_shares(rollouts: Sequence[Rollout], judged: Sequence[JudgedAnswer]) -> dict[int, float]:
    """Position -> vote share, as `group_classes`."""
    return {position: vote_share(classes) for position, classes in group_classes(rollouts, judged).items()}


def with_references(algorithm: Algorithm, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that the algorithm can train on: those with a reference answer, where it needs one.

    The others are left out and counted in the log. DataError when none is left.
    """
    kept = [prompt for prompt in prompts if prompt.answer or not algorithm.needs_references]
    if not kept:
        raise DataError(
            f"training.algorithm {algorithm.name} needs reference answers, and none of the {len(prompts)} "
            "prompts has one that can be checked",
            hint="give the rows an answer, or train with algorithm nll, which needs none",
        )
    if len(kept) < len(prompts):
        missing = next(prompt.row for prompt in prompts if not prompt.answer)
        log.warning("prompts_without_reference_left_out", left_out=len(prompts) - len(kept), first_row=missing)
    return kept
