"""A control: random rewards."""

from __future__ import annotations

import pytest

from learner.algorithms.base import Group
from learner.algorithms.controls.random_reward import signals
from tests.support.judging import SameText


def rewards(seed: int) -> list[float]:
    return [signal.reward for signal in signals(Group("4", ("4",) * 8, seed), SameText())]


def test_rewards_are_fair_coins_of_the_group_and_not_of_the_answers() -> None:
    drawn = [reward for seed in range(250) for reward in rewards(seed)]
    assert set(drawn) == {0.0, 1.0}
    assert sum(drawn) / len(drawn) == pytest.approx(0.5, abs=0.05)  # four standard errors
    assert rewards(1) == rewards(1)
    assert len({tuple(rewards(seed)) for seed in range(20)}) > 10
