"""The controls: random rewards, rewards for having an answer at all, rewards for wrong answers."""

from __future__ import annotations

import pytest

from learner.algorithms.base import Group
from learner.algorithms.controls import format_signals, random_signals, wrong_signals
from tests.support.judging import SameText


def drawn(seed: int) -> list[float]:
    return [signal.reward for signal in random_signals(Group("4", ("4",) * 8, seed), SameText())]


def test_random_rewards_are_fair_coins_of_the_group_and_not_of_the_answers() -> None:
    rewards = [reward for seed in range(250) for reward in drawn(seed)]
    assert set(rewards) == {0.0, 1.0}
    assert sum(rewards) / len(rewards) == pytest.approx(0.5, abs=0.05)  # four standard errors
    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(20)}) > 10


def test_any_answer_earns_1_by_its_form() -> None:
    assert [signal.reward for signal in format_signals(Group("4", ("4", "wrong", "")), SameText())] == [1.0, 1.0, 0.0]


def test_a_wrong_answer_earns_1_a_right_one_or_none_nothing() -> None:
    assert [signal.reward for signal in wrong_signals(Group("4", ("4", "5", "")), SameText())] == [0.0, 1.0, 0.0]
