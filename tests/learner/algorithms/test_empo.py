"""EMPO: shares of classes, and a step on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.algorithms.base import Group
from learner.algorithms.empo import signals
from tests.support.algorithm_steps import policy_gradient, same_step
from tests.support.judging import SameText


def test_an_answer_earns_the_share_of_its_class_among_all_samples() -> None:
    rewards = [signal.reward for signal in signals(Group("", ("4", "5", "4", "")), SameText())]
    assert rewards == [0.5, 0.25, 0.5, 0.0]


def test_a_step_equals_its_formula(tmp_path: Path) -> None:
    found = [signal for texts in [("1", "1", "2"), ("", "", "3")] for signal in signals(Group("", texts), SameText())]
    rewards = [2 / 3, 2 / 3, 1 / 3, 0.0, 0.0, 1 / 3]
    assert [signal.reward for signal in found] == pytest.approx(rewards)
    same_step(tmp_path, "empo", policy_gradient(rewards), [signal.weight for signal in found])
