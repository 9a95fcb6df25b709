"""RENT: a step on the entropy of the model's predictions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.algorithm_steps import policy_gradient, rollouts, same_step
from tests.support.plain_model import own_logits, plain_model
from tests.support.tiny_models import save


def test_a_step_equals_its_formula(tmp_path: Path) -> None:
    plain = plain_model(save(tmp_path))
    scores = []
    for rollout in rollouts():
        p = own_logits(plain, rollout).detach().softmax(-1)
        scores.append((p * p.log()).sum(-1).mean().item())
    stats = same_step(tmp_path, "entropy_reward", policy_gradient(scores))
    assert tuple(signal.reward for signal in stats.signals) == pytest.approx(scores, rel=1e-4)
