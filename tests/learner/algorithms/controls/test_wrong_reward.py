"""A control: rewards for wrong answers."""

from __future__ import annotations

from learner.algorithms.base import Group
from learner.algorithms.controls.wrong_reward import signals
from tests.support.judging import SameText


def test_a_wrong_answer_earns_1_a_right_one_or_none_nothing() -> None:
    assert [signal.reward for signal in signals(Group("4", ("4", "5", "")), SameText())] == [0.0, 1.0, 0.0]
