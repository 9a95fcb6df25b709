"""Weights: how often prompts come."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from learner.data.prompt_order import PromptOrder


def test_prompts_come_as_often_as_they_weigh() -> None:
    order = PromptOrder([1.0] * 10 + [2.0] * 5 + [0.5] * 4, seed=3)
    assert order.epoch_size == 10 + 10 + 2
    first, both = (Counter(order.indices(range(count * order.epoch_size))) for count in (1, 2))
    assert [first[index] for index in range(15)] == [1] * 10 + [2] * 5
    assert sum(first[index] for index in range(15, 19)) == 2
    assert [both[index] for index in range(19)] == [2] * 10 + [4] * 5 + [1] * 4


def test_an_epoch_mixes_all_and_is_a_function_of_seed_and_position() -> None:
    order = PromptOrder([1.0] * 50 + [2.0] * 50, seed=3)
    drawn = order.indices(range(150))
    assert np.mean(drawn[:75]) == pytest.approx(np.mean(drawn[75:]), abs=20)
    assert drawn != order.indices(range(150, 300))
    again = PromptOrder([1.0] * 50 + [2.0] * 50, seed=3)
    assert again.indices(range(140, 160)) == order.indices(range(140, 160))
    assert PromptOrder([1.0] * 50 + [2.0] * 50, seed=4).indices(range(150)) != drawn


def test_a_weight_so_small_that_no_prompt_is_left_gives_one() -> None:
    assert PromptOrder([1.0, 0.001], seed=0).epoch_size == 2
