"""A control: rewards for having an answer at all."""

from __future__ import annotations

from learner.algorithms.base import Group
from learner.algorithms.controls.format_reward import signals
from tests.support.judging import SameText


def test_any_answer_earns_1() -> None:
    assert [signal.reward for signal in signals(Group("4", ("4", "wrong", "")), SameText())] == [1.0, 1.0, 0.0]
