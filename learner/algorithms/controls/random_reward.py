"""A control: rewards that know nothing. What improves under them comes from the model's habits, not from a signal."""

from __future__ import annotations

from random import Random

from learner.algorithms.base import Group, Judge, Signal
from learner.algorithms.grpo import relative, with_grpo_loss


def signals(group: Group, judge: Judge) -> list[Signal]:
    """An answer earns 1 with probability 1/2, else 0; its weight is its advantage (arXiv 2506.10947)."""
    draw = Random(group.seed)
    return relative([float(draw.random() < 0.5) for _ in group.answers])


RANDOM_REWARD = with_grpo_loss("random_reward", signals=signals)
