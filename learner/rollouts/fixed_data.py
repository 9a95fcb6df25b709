"""The base model's own answers, sampled once before training: SePT (offline).

Every prompt is answered by version 0 at tau_start, at its position in the first epoch. All later epochs are trained on
the same answers in the curriculum's order: standard supervised epochs over a fixed set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from learner.data.curriculum import Curriculum
from services.contracts import Rollout


class FixedData:
    """The answers of a whole run.

    data = FixedData(curriculum, rollouts)      those of all rounds in `curriculum.drawn_rounds()`
    data.of(7)                                  round 7's, whichever epoch it lies in
    """

    def __init__(self, curriculum: Curriculum, rollouts: Iterable[Rollout]) -> None:
        self._curriculum = curriculum
        self._drawn: dict[int, list[Rollout]] = {}
        for round_, group in groupby(rollouts, key=lambda rollout: rollout.round):
            prompts = curriculum.prompts_of(round_)
            for rollout in group:
                self._drawn.setdefault(prompts[rollout.position].row, []).append(rollout)

    def of(self, round_: int) -> Iterator[Rollout]:
        """The round's rollouts in training order, as if they had been sampled for their positions in it."""
        for position, prompt in enumerate(self._curriculum.prompts_of(round_)):
            for rollout in self._drawn[prompt.row]:
                yield rollout.model_copy(update={"round": round_, "position": position})
