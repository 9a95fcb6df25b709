"""Where a round's rollouts come from: sampled by the newest versions, or once by the model as it was.

A source decides which version admits which round's tasks, and when rollouts may be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Protocol

from learner.data.curriculum import Curriculum
from learner.rollouts.collector import Collector, Waiting
from learner.rollouts.fixed_data import FixedData
from services.contracts import Rollout
from services.errors import CheckpointError


class RolloutSource(Protocol):
    """What the loop asks of either source."""

    @property
    def follows_versions(self) -> bool:
        """Whether rounds are sampled from versions that this run publishes."""

    def begin(self, version: int) -> None:
        """Issue what a learner needs that starts from `version`, which is published."""

    def admit(self, version: int) -> None:
        """Issue what this later version admits."""

    def rollouts(self, round_: int) -> Iterator[Rollout]:
        """The round's rollouts in training order, each as soon as it is here.

        Raises what `Collector.in_order` raises.
        """

    def discard_from(self, version: int) -> None:
        """Forget what belongs to the rounds from `version` on: they will be trained again."""

    def release(self, version: int) -> None:
        """Forget what nobody needs any more, now that `version`'s checkpoint is durable."""


class OnlineSource:
    """Round r is sampled from version r - max_staleness on, and issued when that version is published."""

    follows_versions = True

    def __init__(
        self, curriculum: Curriculum, collector: Collector, *, max_staleness: int, deadline_s: float, waiting: Waiting
    ) -> None:
        self._curriculum = curriculum
        self._collector = collector
        self._max_staleness = max_staleness
        self._deadline_s = deadline_s
        self._waiting = waiting

    def begin(self, version: int) -> None:
        for round_ in range(version, version + self._max_staleness + 1):
            self._issue(round_)

    def admit(self, version: int) -> None:
        self._issue(version + self._max_staleness)

    def rollouts(self, round_: int) -> Iterator[Rollout]:
        return self._collector.in_order(round_, self._deadline_s, self._waiting)

    def discard_from(self, version: int) -> None:
        self._collector.discard_from(version)

    def release(self, version: int) -> None:
        self._collector.release(before_round=version)

    def _issue(self, round_: int) -> None:
        if round_ < self._curriculum.rounds_total:
            self._collector.expect(self._curriculum.tasks_of(round_))


class FixedSource:
    """Version 0 answers every prompt once, and all rounds are trained on those answers."""

    follows_versions = False

    def __init__(self, curriculum: Curriculum, collector: Collector, *, deadline_s: float, waiting: Waiting) -> None:
        self._curriculum = curriculum
        self._collector = collector
        self._deadline_s = deadline_s
        self._waiting = waiting
        self._data: FixedData | None = None

    def begin(self, version: int) -> None:
        """CheckpointError when parts of the set are gone and version 0 is, too."""
        for round_ in self._curriculum.drawn_rounds() if version < self._curriculum.rounds_total else ():
            tasks = self._curriculum.tasks_of(round_)
            if version > 0 and not self._collector.has(tasks):
                raise CheckpointError(
                    f"the fixed data set lacks answers to round {round_}, and the run is at version {version}: "
                    "the base model that drew the others is no longer served",
                    hint="keep Redis, training.rounds and sampling.* as they were when the run began, or start a new "
                    "run.dir",
                )
            self._collector.expect(tasks)

    def admit(self, version: int) -> None:
        """Everything is issued already."""

    def rollouts(self, round_: int) -> Iterator[Rollout]:
        """Waits, once, for the whole set: training starts after that, as version 0 must answer it all."""
        if self._data is None:
            drawn = self._curriculum.drawn_rounds()
            answers = (self._collector.in_order(one, self._deadline_s, self._waiting) for one in drawn)
            self._data = FixedData(self._curriculum, chain.from_iterable(answers))
        return self._data.of(round_)

    def discard_from(self, version: int) -> None:
        """What was drawn stays."""

    def release(self, version: int) -> None:
        """Every round needs all of the set."""
        if version >= self._curriculum.rounds_total:
            self._collector.release(before_round=version)
