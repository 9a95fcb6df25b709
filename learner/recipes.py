"""What belongs to a way of training beyond its numbers, by name: `training.recipe`.

`default` is this project's own; `paper` is what the reference code of arXiv 2510.18814 does (ElementQi/SePT, a fork of
verl), whose offline variant is trained by verl's trainer for supervised fine-tuning. `docs/method.md` has the list.
`ssd` is plain supervised fine-tuning on a fixed data set, as in arXiv 2604.01193.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rate = Literal["constant", "by_round", "cosine"]
"""How the learning rate moves. constant: full after a warm-up that begins above 0; by_round: the same, but it moves
between rounds only and begins at 0; cosine: a warm-up from 0, then half a cosine down to 0 at the run's last step."""


@dataclass(frozen=True, slots=True)
class Phase:
    """How the optimizer is driven."""

    rate: Rate = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way of training."""

    online: Phase = Phase()
    fixed: Phase = Phase()
    """On a fixed data set."""
    whole_rounds: bool = False
    """Whether an epoch leaves out the prompts that fill no round; else a round may span two epochs."""
    strict_grading: bool = False
    """Whether only what stands in the last box counts as an answer, in rewards and in evaluations."""

    def phase(self, data: Literal["online", "fixed"]) -> Phase:
        """What holds for this `training.data`."""
        return self.online if data == "online" else self.fixed


RECIPES = {
    "default": Recipe(),
    "paper": Recipe(
        online=Phase(rate="by_round"),
        fixed=Phase(rate="cosine", betas=(0.9, 0.95)),
        whole_rounds=True,
        strict_grading=True,
    ),
    "ssd": Recipe(fixed=Phase(rate="cosine")),
}
"""What training.recipe can name."""
