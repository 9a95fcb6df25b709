from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.monitoring.collapse import CollapseMonitor, find_signs, measure_health, repetition
from tests.support import tiny_models
from tests.support.plain_model import own_logits, plain_model
from tests.support.round_records import SOUND, metrics_of


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [([1, 2, 3], 0.0), (range(40), 0.0), ([7] * 103, 0.99), ([1, 2, 3, 4] * 10, 33 / 37)],
    ids=["short", "all different", "one token", "a loop"],
)
def test_repetition_is_the_share_of_four_grams_that_occurred_before(tokens: list[int], expected: float) -> None:
    assert repetition(np.array(tokens, dtype=np.int32)) == pytest.approx(expected)


def test_probe_equals_the_formulas_on_whole_logits(tmp_path: Path) -> None:
    model = tiny_models.load(tmp_path)
    rollouts = [rollout.model_copy(update={"temperature": 0.6}) for rollout in tiny_models.rollouts(6)]
    health = measure_health(model, rollouts)
    plain = plain_model(tmp_path)
    logits = torch.cat([own_logits(plain, rollout) for rollout in rollouts])
    tokens = torch.tensor(np.concatenate([rollout.response_tokens for rollout in rollouts]), dtype=torch.int64)[:, None]
    p = logits.softmax(-1)
    assert health.entropy == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-5)
    assert health.nll_tau_1 == pytest.approx(-p.log().gather(-1, tokens).mean().item(), rel=1e-5)
    assert health.nll_tau_s == pytest.approx(-(logits / 0.6).log_softmax(-1).gather(-1, tokens).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        ({"truncated_ratio": 0.6}, "60% of the responses are cut off"),
        ({"repetition_ratio": 0.7}, "repeat 70% of their 4-grams"),
        ({"distinct_ratio": 0.05}, "only 5% of the responses are distinct"),
        ({"entropy": 0.005}, "token entropy is 0.005 nats, limits 0.01 and 1.5"),
        ({"entropy": 2.0}, "token entropy is 2 nats"),
        ({"entropy": float("nan")}, "token entropy is nan"),
        ({"response_length_mean": 20.0}, "length is 20.0 tokens, limits 25.0 and 400.0"),
        ({"response_length_mean": 500.0}, "length is 500.0 tokens"),
    ],
)
def test_every_sign_of_collapse_is_named_with_its_limit(change: dict[str, float], sign: str) -> None:
    (found,) = find_signs([SOUND], replace(SOUND, **change))
    assert sign in found


def test_a_run_that_sharpens_is_healthy() -> None:
    assert find_signs([SOUND], replace(SOUND, entropy=0.1, nll_tau_1=0.1, response_length_mean=180.0)) == []


def test_a_value_that_the_run_began_with_is_no_sign() -> None:
    odd = replace(SOUND, truncated_ratio=0.9, repetition_ratio=0.6, distinct_ratio=0.05)
    assert find_signs([odd], odd) == []


def test_a_round_is_compared_with_the_first_rounds_also_after_a_resume(tmp_path: Path) -> None:
    recorded = [metrics_of(number).model_copy(update=asdict(SOUND)) for number in range(3)]
    model, rollouts = tiny_models.load(tmp_path), tiny_models.rollouts(6)
    _, found = CollapseMonitor(recorded).examine(model, rollouts)
    assert "mean response length" in found[-1]
    fresh = CollapseMonitor([])
    assert [fresh.examine(model, rollouts)[1] for _ in range(4)] == [[], [], [], []]


def test_the_newest_version_without_a_sign_is_the_healthy_one(tmp_path: Path) -> None:
    unhealthy = replace(SOUND, truncated_ratio=0.9)
    states = [SOUND, SOUND, SOUND, SOUND, unhealthy, SOUND, unhealthy]
    recorded = [metrics_of(number).model_copy(update=asdict(health)) for number, health in enumerate(states)]
    monitor = CollapseMonitor(recorded)
    assert monitor.newest_healthy(range(3, 8)) == 6
    assert monitor.newest_healthy([5, 7]) is None
    assert monitor.newest_healthy([]) is None
    assert monitor.newest_healthy([8]) == 8, "nothing is known of it"


def test_a_version_that_was_trained_again_is_judged_by_its_last_round() -> None:
    sick = replace(SOUND, truncated_ratio=0.9)
    recorded = [
        metrics_of(number).model_copy(update=asdict(health))
        for number, health in [(0, SOUND), (1, SOUND), (2, SOUND), (3, sick), (3, SOUND), (4, SOUND), (4, sick)]
    ]
    assert CollapseMonitor(recorded).newest_healthy([3, 4, 5]) == 4
