"""NLL on the majority: its step, and what it is divided by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from learner.algorithms.base import Group, Targets
from learner.algorithms.vote_nll import signals, weighted_nll
from tests.support.algorithm_steps import largest_difference, own_step, same_step, taken
from tests.support.judging import SameText
from tests.support.plain_model import plain_model


def test_an_answer_weighs_1_in_the_majority_and_0_else() -> None:
    assert signals(Group("", ("4", "5", "5")), SameText()) == [(0.0, 0.0), (1.0, 1.0), (1.0, 1.0)]


def test_a_step_is_the_mean_nll_of_the_kept_tokens(tmp_path: Path) -> None:
    kept = [1, 2, 4]

    def loss(log_p: Callable[[int], torch.Tensor], tokens: list[torch.Tensor]) -> torch.Tensor:
        return -torch.cat([taken(log_p(index), tokens[index]) for index in kept]).mean()

    same_step(tmp_path, "vote_nll", loss, [float(index in kept) for index in range(6)])


def test_a_step_that_keeps_nothing_moves_nothing(tmp_path: Path) -> None:
    stats, weights = own_step(tmp_path, "vote_nll", [0.0] * 6)
    assert (stats.loss, stats.grad_norm, stats.skipped_steps) == (0.0, 0.0, 0)
    assert len(stats.nll) == 6
    untouched = [parameter.detach() for parameter in plain_model(tmp_path).parameters()]
    assert largest_difference(weights, untouched) == 0.0


def test_weights_that_are_missing_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="weights"):
        weighted_nll(torch.zeros(1, 2), Targets(torch.zeros(1, dtype=torch.int64)))
