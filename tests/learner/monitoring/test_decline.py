"""A run that is sure and wrong is found by its probe; one that is healthy is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import structlog

from learner.algorithm_list import ALGORITHMS
from learner.monitoring.decline import DeclineMonitor, Peak
from services.contracts import EvaluationMetrics, RoundMetrics
from tests.support.round_records import metrics_of

PROBLEMS, SAMPLES = 200, 32
EVALUATIONS = 40
CONTROLS = {"random_reward", "format_reward", "wrong_reward"}
IMPROVING = sorted(set(ALGORITHMS) - CONTROLS)
Course = Callable[[int], float]
"""Evaluation -> the model's true pass@1."""


def line(version: int, pass_at_1: float, *, pass_at_2: float | None = None, vote_share: float = 0.5) -> RoundMetrics:
    """The line of a round whose version was evaluated on PROBLEMS problems."""
    by_k = {1: pass_at_1, 2: pass_at_1 + 0.1 if pass_at_2 is None else pass_at_2}
    evaluation = EvaluationMetrics(
        weight_version=version,
        temperature=1.0,
        samples=SAMPLES,
        problems={"sums": PROBLEMS},
        pass_at_k={"sums": by_k, "mean": by_k},
    )
    return metrics_of(version - 1).model_copy(update={"evaluations": (evaluation,), "vote_share": vote_share})


def drawn(course: Course, seed: int) -> Iterator[RoundMetrics]:
    """A run's evaluations, with the noise of a probe: problems are harder and easier, answers are drawn anew."""
    draw = np.random.default_rng(seed)
    hardness = draw.normal(0.0, 1.5, PROBLEMS)
    shifts = np.linspace(-8, 8, 2000)[:, None]
    chances = 1 / (1 + np.exp(hardness - shifts))
    means = chances.mean(axis=1)
    for number in range(EVALUATIONS):
        wrong = SAMPLES - draw.binomial(SAMPLES, chances[np.searchsorted(means, course(number))])
        pass_at_1 = float(1 - wrong.mean() / SAMPLES)
        pass_at_2 = float(1 - (wrong * (wrong - 1)).mean() / (SAMPLES * (SAMPLES - 1)))
        yield line(number + 1, pass_at_1, pass_at_2=pass_at_2, vote_share=0.5 + number / 100)


def stopped_at(course: Course, seed: int) -> int | None:
    """The evaluation at which the monitor speaks up first."""
    monitor = DeclineMonitor([])
    return next((number for number, metrics in enumerate(drawn(course, seed)) if monitor.examine(metrics)), None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("peak_at", [0, 4, 20])
@pytest.mark.parametrize("slope", [0.004, 0.01])
def test_a_run_that_collapses_is_found_before_it_has_lost_5_points(seed: int, peak_at: int, slope: float) -> None:
    def course(number: int) -> float:
        return 0.7 - 0.02 * max(0, peak_at - number) / 4 - slope * max(0, number - peak_at)

    found = stopped_at(course, seed)
    assert found is not None
    assert course(peak_at) - course(found) < 0.05


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("algorithm", IMPROVING)
def test_a_healthy_run_is_left_alone(algorithm: str, seed: int) -> None:
    """Curves as the algorithms have them: a start, a rise of its own size and speed, a plateau; one is flat."""
    order = IMPROVING.index(algorithm)
    start, gain, speed = 0.35 + 0.03 * order, 0.04 * order, 1 + order

    def course(number: int) -> float:
        return float(start + gain * (1 - np.exp(-number / speed)))

    assert stopped_at(course, 100 * order + seed) is None


def test_the_peak_is_the_last_version_of_the_best_three_evaluations() -> None:
    assert DeclineMonitor([]).peak is None
    monitor = DeclineMonitor([])
    for version, value in enumerate([0.5, 0.6, 0.7, 0.62, 0.5], start=1):
        monitor.examine(line(version, value))
    assert monitor.peak is not None
    assert monitor.peak == pytest.approx(Peak(4, 0.64))


def test_a_sign_names_the_fall_the_peak_and_what_hides_it() -> None:
    monitor = DeclineMonitor([line(1, 0.7), line(2, 0.7), line(3, 0.7)])
    (said,) = monitor.examine(line(4, 0.6, vote_share=0.8))
    assert said == (
        "pass@1 on the probe is 66.7%, 3.3 points below its peak of 70.0% at version 3, while the answers agree more: "
        "vote share 0.50, now 0.80"
    )
    assert monitor.examine(metrics_of(4)) == [], "no evaluation, no news"
    (said,) = monitor.examine(line(6, 0.6, vote_share=0.4))
    assert said.endswith("at version 3")


def test_what_a_rollback_did_again_is_forgotten() -> None:
    monitor = DeclineMonitor([line(1, 0.5), line(2, 0.9), line(3, 0.9), line(4, 0.9)])
    assert monitor.examine(line(2, 0.5)) == []
    assert monitor.peak is not None
    assert monitor.peak == pytest.approx(Peak(2, 0.5))


def test_a_probe_that_is_too_small_is_named_and_the_number_of_problems_must_be_known() -> None:
    small = line(1, 0.5, pass_at_2=0.75)
    (evaluation,) = small.evaluations
    with structlog.testing.capture_logs() as logs:
        few = evaluation.model_copy(update={"problems": {"sums": 10}})
        DeclineMonitor([small.model_copy(update={"evaluations": (few,)})])
        DeclineMonitor([small])
    assert [log["event"] for log in logs] == ["probe_too_small"]
    unknown = small.model_copy(update={"evaluations": (evaluation.model_copy(update={"problems": {}}),)})
    assert DeclineMonitor([unknown]).peak is None
