"""TTRL: who wins a vote, and a step on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.algorithms.base import Group
from learner.algorithms.majority_vote import signals, winners
from tests.support.algorithm_steps import policy_gradient, same_step
from tests.support.judging import SameText


@pytest.mark.parametrize(
    ("classes", "won"),
    [
        ([0, 1, 1], [False, True, True]),
        ([0, 1, 0, 1], [True, False, True, False]),  # a tie: sampled first
        ([None, 0, None], [False, True, False]),
        ([None, None], [False, False]),
    ],
)
def test_the_largest_class_wins(classes: list[int | None], won: list[bool]) -> None:
    assert winners(classes) == won


def test_the_majority_earns_1() -> None:
    assert [signal.reward for signal in signals(Group("9", ("4", "5", "4", "")), SameText())] == [1.0, 0.0, 1.0, 0.0]


def test_no_reference_answer_is_looked_at() -> None:
    assert signals(Group("4", ("4", "5", "5")), SameText()) == signals(Group("", ("4", "5", "5")), SameText())


def test_a_step_equals_its_formula(tmp_path: Path) -> None:
    answers = [("4", "4", "5"), ("", "7", "7")]
    voted = [signal for texts in answers for signal in signals(Group("", texts), SameText())]
    rewards = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert [signal.reward for signal in voted] == rewards
    same_step(tmp_path, "majority_vote", policy_gradient(rewards), [signal.weight for signal in voted])
