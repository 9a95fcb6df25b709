"""TTRL: the answer that most samples agree on stands in for the reference answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from learner.algorithms.base import Group, Judge, Signal
from learner.algorithms.grpo import relative, with_grpo_loss


def winners(classes: Sequence[int | None]) -> list[bool]:
    """[G] whether each answer is in the largest class.

    If several classes are equally large, the one that was sampled first wins: samples come in random order, so that is
    fair, and a round that is done again has the same winner. Texts without an answer have no vote and never win.
    """
    votes = Counter(class_ for class_ in classes if class_ is not None)
    if not votes:
        return [False] * len(classes)
    largest = min(votes, key=lambda class_: (-votes[class_], class_))
    return [class_ == largest for class_ in classes]


def signals(group: Group, judge: Judge) -> list[Signal]:
    """An answer earns 1 in the majority, else 0; its weight is its advantage (arXiv 2504.16084)."""
    return relative([float(won) for won in winners(judge.classes(group.answers))])


MAJORITY_VOTE = with_grpo_loss("majority_vote", signals=signals)
