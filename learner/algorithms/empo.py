"""EMPO: an answer earns the share of the samples that mean the same, which lowers the entropy over meanings."""

from __future__ import annotations

from collections import Counter

from learner.algorithms.base import Group, Judge, Signal
from learner.algorithms.grpo import relative, with_grpo_loss


def signals(group: Group, judge: Judge) -> list[Signal]:
    """r_i = |class of i| / G; 0 for a text without an answer; the weight is the advantage (arXiv 2504.05812)."""
    classes = judge.classes(group.answers)
    sizes = Counter(classes)
    return relative([0.0 if class_ is None else sizes[class_] / len(classes) for class_ in classes])


EMPO = with_grpo_loss("empo", signals=signals)
