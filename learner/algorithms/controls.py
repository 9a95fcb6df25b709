r"""Controls: rewards that know nothing of what an answer is worth (arXiv 2506.10947).

A model that gets better under one of them did not need the signal: it gained what its own habits gave it.
"""

from __future__ import annotations

from random import Random

from learner.algorithms.base import Group, Judge, Signal
from learner.algorithms.grpo import relative, with_grpo_loss


def random_signals(group: Group, judge: Judge) -> list[Signal]:
    """An answer earns 1 with probability 1/2, else 0; its weight is its advantage."""
    draw = Random(group.seed)
    return relative([float(draw.random() < 0.5) for _ in group.answers])


def format_signals(group: Group, judge: Judge) -> list[Signal]:
    r"""An answer earns 1 when it has an answer that can be compared, in a \boxed{} or at its end, else 0; its weight is
    its advantage. What it gains is what a model gains by learning to finish."""
    return relative([float(class_ is not None) for class_ in judge.classes(group.answers)])


def wrong_signals(group: Group, judge: Judge) -> list[Signal]:
    """An answer earns 1 when there is one and it differs from the reference answer, else 0; its weight is its
    advantage."""
    answered = [class_ is not None for class_ in judge.classes(group.answers)]
    correct = judge.are_correct([(answer, group.reference) for answer in group.answers])
    return relative([float(has and not right) for has, right in zip(answered, correct, strict=True)])


RANDOM_REWARD = with_grpo_loss("random_reward", signals=random_signals)
FORMAT_REWARD = with_grpo_loss("format_reward", signals=format_signals)
WRONG_REWARD = with_grpo_loss("wrong_reward", signals=wrong_signals, needs_references=True)
