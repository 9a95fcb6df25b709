"""What limits a run is named, and the generators that would balance it are counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bottleneck import MAX_GROWTH, ROUNDS_CONSIDERED, find_bottleneck
from services.contracts import GeneratorStatus, Part, RoundMetrics
from tests.support.heartbeats import heartbeat
from tests.support.recorded_run import metrics


def rounds(wait: float, count: int = 10) -> list[RoundMetrics]:
    return [metrics(number, learner_wait_s=10 * wait, round_s=10.0) for number in range(count)]


def generators(idle: float, count: int = 2, *, lost: int = 0) -> list[GeneratorStatus]:
    shares = {"waiting_for_tasks": idle, "generating": 1 - idle}
    return [
        GeneratorStatus(
            heartbeat=heartbeat(Part.GENERATOR, f"g{n}", "generating", shares=shares), age_s=0, lost=n >= count
        )
        for n in range(count + lost)
    ]


@pytest.mark.parametrize(
    ("wait", "idle", "count", "bottleneck", "suggested"),
    [
        (0.5, 0.0, 2, "generation", 4),
        (0.25, 0.1, 3, "generation", 4),
        (0.9, 0.0, 2, "generation", 4),  # never more than twice at once
        (1.0, 0.0, 1, "generation", 2),
        (0.0, 0.5, 4, "training", 3),
        (0.0, 0.9, 8, "training", 1),
        (0.05, 0.9, 1, "training", None),
        (0.05, 0.1, 2, "balanced", None),
        (0.5, 0.5, 2, "overlap", None),
    ],
)
def test_what_limits_a_run(wait: float, idle: float, count: int, bottleneck: str, suggested: int | None) -> None:
    found = find_bottleneck(rounds(wait), generators(idle, count))
    assert (found.kind, found.suggested_generators) == (bottleneck, suggested)
    assert found.learner_wait_ratio == pytest.approx(wait)
    assert found.generator_idle_ratio == pytest.approx(idle)


def test_too_few_rounds_say_nothing() -> None:
    assert find_bottleneck(rounds(0.5, count=2), generators(0.0)).kind == "unknown"


def test_without_a_living_generator_there_is_nothing_to_weigh() -> None:
    found = find_bottleneck(rounds(0.5), generators(0.0, 0, lost=2))
    assert (found.kind, found.reason) == ("unknown", "no generator is alive")


def test_the_lost_do_not_count() -> None:
    assert find_bottleneck(rounds(0.5), generators(0.0, 2, lost=5)).suggested_generators == 4


def test_only_the_newest_rounds_count() -> None:
    assert find_bottleneck([*rounds(0.9, 100), *rounds(0.0, ROUNDS_CONSIDERED)], generators(0.0)).kind == "balanced"


@given(wait=st.floats(0, 3), idle=st.floats(0, 1), count=st.integers(1, 100))
def test_a_suggestion_is_always_within_reach(wait: float, idle: float, count: int) -> None:
    suggested = find_bottleneck(rounds(wait), generators(idle, count)).suggested_generators
    assert suggested is None or 1 <= suggested <= count * MAX_GROWTH
    assert suggested != count
