"""The paper's schedules, by value."""

from __future__ import annotations

import pytest

from learner.config import SamplingConfig, TrainingConfig
from learner.data.schedule import learning_rate, sampling_temperature


@pytest.mark.parametrize(("epoch", "tau"), [(0, 0.6), (0.5, 0.7), (1, 0.8), (1.5, 0.9), (2, 1.0), (2.5, 1.0), (3, 1.0)])
def test_temperature_of_the_paper_rises_from_06_to_1_over_two_epochs(epoch: float, tau: float) -> None:
    assert sampling_temperature(SamplingConfig(), epoch) == pytest.approx(tau, abs=1e-12)


def test_temperature_of_general_models_starts_at_09() -> None:
    config = SamplingConfig(tau_start=0.9)
    assert [sampling_temperature(config, u) for u in (0, 1, 2)] == pytest.approx([0.9, 0.95, 1.0])


def test_cosine_starts_and_ends_flat_and_is_halfway_in_the_middle() -> None:
    config = SamplingConfig(schedule="cosine")
    assert [sampling_temperature(config, u) for u in (0, 1, 2, 9)] == pytest.approx([0.6, 0.8, 1.0, 1.0])
    assert sampling_temperature(config, 0.2) < sampling_temperature(SamplingConfig(), 0.2)


def test_constant_stays_at_the_start() -> None:
    config = SamplingConfig(schedule="constant", tau_start=0.7)
    assert {sampling_temperature(config, u) for u in (0.0, 1.0, 5.0)} == {0.7}


def test_learning_rate_warms_up_linearly_and_then_is_constant() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(config, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_learning_rate_without_warm_up_is_constant() -> None:
    assert learning_rate(TrainingConfig(learning_rate=0.5, warmup_steps=0), 0) == 0.5
