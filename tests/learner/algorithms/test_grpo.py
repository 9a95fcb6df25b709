"""GRPO: its clip, its advantages, its rewards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learner.algorithms.base import Group, Targets
from learner.algorithms.grpo import GRPO, advantages, grpo, signals
from tests.support.judging import SameText


def test_grpo_gradient_is_zero_where_the_clip_is_active() -> None:
    """Beyond the clip on the side the advantage pushes to: no gradient. On the other side: full gradient."""
    logits_NV = torch.zeros(4, 2, requires_grad=True)
    now = torch.tensor(0.5).log()
    old = now - torch.tensor([1.5, 1.5, 0.5, 0.5]).log()
    targets = Targets(torch.zeros(4, dtype=torch.int64), old, torch.tensor([1.0, -1.0, 1.0, -1.0]))
    grpo(logits_NV, targets).loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logits_NV.grad is not None
    assert logits_NV.grad.any(dim=1).tolist() == [False, True, True, False]


def test_grpo_without_old_log_probs_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="old log-probabilities"):
        grpo(torch.zeros(1, 2), Targets(torch.zeros(1, dtype=torch.int64)))


def test_an_advantage_is_relative_to_the_answers_to_the_same_prompt() -> None:
    third = 3**0.5 / 3
    assert advantages([1.0, 0.0, 0.0]) == pytest.approx([2 * third, -third, -third], abs=1e-5)
    assert advantages([5.0, 5.0]) == [0.0, 0.0]
    assert advantages([3.0]) == [0.0], "one answer has nothing to be compared with"


def test_a_right_answer_earns_1_and_outweighs_wrong_ones() -> None:
    right, wrong = signals(Group("4", ("4", "5")), SameText())
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    assert right.weight == -wrong.weight > 0


def test_old_log_probabilities_need_the_whole_round() -> None:
    with pytest.raises(ValueError, match="whole round"):
        replace(GRPO, needs_whole_round=False)
