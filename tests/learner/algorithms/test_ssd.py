"""SSD: which answers are stubs, and its step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from learner.algorithms.base import Group
from learner.algorithms.ssd import signals
from learner.config import TrainingConfig
from learner.data.schedule import learning_rate
from tests.support.algorithm_steps import same_step, taken
from tests.support.judging import SameText


class OneLineWithoutAnAnswer(SameText):
    """As the grader sees "def f():"."""

    def classes(self, answers: object) -> list[int | None]:
        return [0, None, None, None]


def test_an_answer_that_says_nothing_is_a_stub() -> None:
    answers = ("231", "", " \n ", "def f():")
    assert [signal.weight for signal in signals(Group("", answers), OneLineWithoutAnAnswer())] == [1.0, 0.0, 0.0, 0.0]
    long = ("231", "", "def f():\n    return 4", "def f():\n")
    assert [signal.weight for signal in signals(Group("", long), OneLineWithoutAnAnswer())] == [1.0, 0.0, 1.0, 0.0]


def test_a_step_is_the_mean_nll_of_the_tokens_that_are_no_stubs(tmp_path: Path) -> None:
    kept = [1, 2, 4]

    def loss(log_p: Callable[[int], torch.Tensor], tokens: list[torch.Tensor]) -> torch.Tensor:
        return -torch.cat([taken(log_p(index), tokens[index]) for index in kept]).mean()

    same_step(tmp_path, "ssd", loss, [float(index in kept) for index in range(6)])


def test_its_rate_falls_to_0_on_a_fixed_data_set() -> None:
    config = TrainingConfig(recipe="ssd", data="fixed", rounds=10, learning_rate=1.0, warmup_steps=2)
    rates = [learning_rate(config, step) for step in range(21)]
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[20] < 1e-9
    assert learning_rate(config.model_copy(update={"data": "online"}), 19) == 1.0
