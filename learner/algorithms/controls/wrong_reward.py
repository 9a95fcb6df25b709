"""A control: wrong answers are rewarded. A model that gets better all the same did not need the reward."""

from __future__ import annotations

from learner.algorithms.base import Group, Judge, Signal
from learner.algorithms.grpo import relative, with_grpo_loss


def signals(group: Group, judge: Judge) -> list[Signal]:
    """An answer earns 1 when there is one and it differs from the reference answer, else 0; its weight is its advantage
    (arXiv 2506.10947)."""
    answered = [class_ is not None for class_ in judge.classes(group.answers)]
    correct = judge.are_correct([(answer, group.reference) for answer in group.answers])
    return relative([float(has and not right) for has, right in zip(answered, correct, strict=True)])


WRONG_REWARD = with_grpo_loss("wrong_reward", signals=signals, needs_references=True)
