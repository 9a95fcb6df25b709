"""Passes over prompts that are too easy or too hard for now, without labels: by how far their answers agree.

Where all answers to a prompt agree there is nothing left to learn from comparing them, and where none do the vote is
chance. A prompt's vote share counts for RECHECK_EPOCHS, then the prompt is sampled again. What a round takes is decided
when its tasks are issued, from the rounds that are trained by then, and stays as it is: a learner that resumes from a
checkpoint has the same plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import structlog

from learner.data.prompt_order import PromptOrder

log = structlog.get_logger()

RECHECK_EPOCHS = 3
"""A prompt that was passed over comes again after so many epochs: the model has changed since."""


class Known(NamedTuple):
    """What the newest round with a prompt has shown."""

    vote_share: float
    epoch: int


class VoteGate:
    """The prompts of every round, chosen along the order of all.

    gate = VoteGate((0.3, 0.9), order, per_round=128, ahead=2)     rounds 0 and 1 are planned
    gate.note(0, {17: 1.0, 4: 0.5})                                round 2 is planned
    gate.indices_of(2)
    """

    def __init__(self, limits: tuple[float, float], order: PromptOrder, *, per_round: int, ahead: int) -> None:
        """`limits`: vote shares that a prompt may have; `ahead`: rounds that are issued before the first is trained."""
        self._low, self._high = limits
        self._order = order
        self._per_round = per_round
        self._ahead = ahead
        self._next = 0
        """Position in the order of the next prompt."""
        self._known: dict[int, Known] = {}
        self._plans: dict[int, list[int]] = {}
        self.load_state(None)

    def indices_of(self, round_: int) -> list[int]:
        """Of the round's prompts, in training order; KeyError for a round that is not planned."""
        return self._plans[round_]

    def is_planned(self, round_: int) -> bool:
        return round_ in self._plans

    def note(self, round_: int, vote_shares: Mapping[int, float]) -> None:
        """Take in what a trained round has shown of its prompts, by index, and plan the next round to be issued."""
        epoch = self._next // self._order.epoch_size
        self._known |= {index: Known(share, epoch) for index, share in vote_shares.items()}
        self._plans = {planned: indices for planned, indices in self._plans.items() if planned >= round_}
        self._plan(round_ + self._ahead)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON can hold it."""
        return {
            "next": self._next,
            "known": [[index, *known] for index, known in sorted(self._known.items())],
            "plans": [[round_, *indices] for round_, indices in sorted(self._plans.items())],
        }

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint; None: from the beginning."""
        if state is None:
            self._next, self._known, self._plans = 0, {}, {}
            for round_ in range(self._ahead):
                self._plan(round_)
            return
        self._next = int(state["next"])
        self._known = {int(index): Known(float(share), int(epoch)) for index, share, epoch in state["known"]}
        self._plans = {int(round_): [int(index) for index in indices] for round_, *indices in state["plans"]}

    def _plan(self, round_: int) -> None:
        """Take the next prompts that may come; after a whole epoch of others, whatever comes."""
        chosen: list[int] = []
        easy = hard = 0
        while len(chosen) < self._per_round:
            (index,) = self._order.indices([self._next])
            known = self._known.get(index)
            stale = known is None or self._next // self._order.epoch_size - known.epoch >= RECHECK_EPOCHS
            self._next += 1
            if known is not None and not stale and easy + hard < self._order.epoch_size:
                easy += known.vote_share > self._high
                hard += known.vote_share < self._low
                if not self._low <= known.vote_share <= self._high:
                    continue
            chosen.append(index)
        if easy or hard:
            log.info("prompts_passed_over", round=round_, too_easy=easy, too_hard=hard)
        self._plans[round_] = chosen
