"""The entropy of predictions: its formula, its bounds, and what its gradient does."""

from __future__ import annotations

import math

import pytest
import torch

from learner.algorithms.base import Targets
from learner.algorithms.entropy import entropy


def test_it_is_the_entropy_whatever_was_sampled() -> None:
    logits_NV = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    p = logits_NV.softmax(-1)
    for tokens in (torch.zeros(5, dtype=torch.int64), torch.arange(5)):
        losses = entropy(logits_NV, Targets(tokens))
        torch.testing.assert_close(losses.loss, -(p * p.log()).sum(-1))
        torch.testing.assert_close(losses.log_probs, p.log()[torch.arange(5), tokens])


def test_it_lies_between_none_and_that_of_equal_chances() -> None:
    losses = entropy(torch.tensor([[0.0] * 8, [100.0] + [0.0] * 7]), Targets(torch.zeros(2, dtype=torch.int64)))
    assert losses.loss.tolist() == pytest.approx([math.log(8), 0.0], abs=1e-6)


def test_a_step_against_it_sharpens() -> None:
    logits_NV = torch.tensor([[1.0, 0.5, 0.0]], requires_grad=True)
    entropy(logits_NV, Targets(torch.tensor([2]))).loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logits_NV.grad is not None
    after = (logits_NV - 0.1 * logits_NV.grad).detach()
    assert after.softmax(-1).max() > logits_NV.softmax(-1).max()
