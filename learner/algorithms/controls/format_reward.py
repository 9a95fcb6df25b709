r"""A control: an answer earns its form alone. What it gains is what a model gains by learning to finish."""

from __future__ import annotations

from learner.algorithms.base import Group, Judge, Signal
from learner.algorithms.grpo import relative, with_grpo_loss


def signals(group: Group, judge: Judge) -> list[Signal]:
    r"""An answer earns 1 when it has an answer that can be compared, in a \boxed{} or at its end, else 0; its weight is
    its advantage (arXiv 2506.10947)."""
    return relative([float(class_ is not None) for class_ in judge.classes(group.answers)])


FORMAT_REWARD = with_grpo_loss("format_reward", signals=signals)
