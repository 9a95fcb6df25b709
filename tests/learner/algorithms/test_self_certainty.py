"""Intuitor: the score against its formula, and a step on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.algorithms.base import Targets
from learner.algorithms.self_certainty import certainty
from tests.support.algorithm_steps import policy_gradient, rollouts, same_step
from tests.support.plain_model import own_logits, plain_model
from tests.support.tiny_models import save


def test_certainty_is_the_divergence_of_the_uniform_distribution_from_the_predictions() -> None:
    logits_NV = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, -2.0]])
    uniform = torch.full((2, 4), 0.25)
    expected = (uniform * (uniform.log() - logits_NV.log_softmax(-1))).sum(-1)
    found = certainty(logits_NV, Targets(torch.zeros(2, dtype=torch.int64)))
    assert torch.allclose(found, expected, atol=1e-6)
    assert found[0] == pytest.approx(0.0, abs=1e-6)


def test_a_step_equals_its_formula(tmp_path: Path) -> None:
    plain = plain_model(save(tmp_path))
    scores = []
    for rollout in rollouts():
        p = own_logits(plain, rollout).detach().softmax(-1)
        scores.append(-(p * p.shape[-1]).log().mean(-1).mean().item())
    stats = same_step(tmp_path, "self_certainty", policy_gradient(scores))
    assert tuple(signal.reward for signal in stats.signals) == pytest.approx(scores, rel=1e-4)
