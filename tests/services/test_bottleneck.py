"""What limits a run is named, and the generators that would balance it are counted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bottleneck import MAX_GROWTH, ROUNDS_CONSIDERED, Look, find_bottleneck, seconds_left
from services.contracts import GeneratorStatus, Part, RoundMetrics
from tests.support.heartbeats import heartbeat
from tests.support.recorded_run import metrics


def rounds(wait: float, count: int = 10, *, first: int = 1, **changes: Any) -> list[RoundMetrics]:
    """Regular rounds of ten seconds."""
    times = {"learner_wait_s": 10 * wait, "train_s": 10 * (1 - wait), "round_s": 10.0}
    return [metrics(first + number, **times | {"time": 10.0 * (first + number)} | changes) for number in range(count)]


def generators(count: int = 2, *, lost: int = 0) -> list[GeneratorStatus]:
    return [
        GeneratorStatus(heartbeat=heartbeat(Part.GENERATOR, f"g{n}", "generating"), age_s=0, lost=n >= count)
        for n in range(count + lost)
    ]


def looks(idle: float, *, first_s: float = 0.0, count: int = 60) -> list[Look]:
    return [Look(first_s + 2.0 * number, 1 - idle) for number in range(count)]


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
    found = find_bottleneck(rounds(min(wait, 1.0)), generators(count), looks(idle))
    assert (found.kind, found.suggested_generators) == (bottleneck, suggested)
    assert found.learner_wait_ratio == pytest.approx(wait)
    assert found.generator_idle_ratio == pytest.approx(idle)


def test_too_few_rounds_say_nothing() -> None:
    assert find_bottleneck(rounds(0.5, count=2), generators(), looks(0.0)).kind == "unknown"


def test_without_a_living_generator_there_is_nothing_to_weigh() -> None:
    found = find_bottleneck(rounds(0.5), generators(0, lost=2), looks(0.0))
    assert (found.kind, found.reason) == ("unknown", "no generator is alive")


def test_the_lost_do_not_count() -> None:
    assert find_bottleneck(rounds(0.5), generators(2, lost=5), looks(0.0)).suggested_generators == 4


def test_only_the_newest_rounds_count() -> None:
    many = [*rounds(0.9, 100), *rounds(0.0, ROUNDS_CONSIDERED, first=101)]
    assert find_bottleneck(many, generators(), looks(0.0, first_s=1000)).kind == "balanced"


@given(wait=st.floats(0, 1), idle=st.floats(0, 1), count=st.integers(1, 100))
def test_a_suggestion_is_always_within_reach(wait: float, idle: float, count: int) -> None:
    suggested = find_bottleneck(rounds(wait), generators(count), looks(idle)).suggested_generators
    assert suggested is None or 1 <= suggested <= count * MAX_GROWTH
    assert suggested != count


def test_a_start_and_a_pause_are_not_taken_for_waiting() -> None:
    """Generators idle through both, and the learner's first round waits for their engines."""
    start = rounds(0.0, 1, first=0, round_s=90.0, learner_wait_s=85.0)
    paused = rounds(0.0, 1, first=5, round_s=500.0)
    before, after = rounds(0.05, 4), rounds(0.05, 4, first=60)
    idle_then_busy = [*looks(1.0, count=250), *looks(0.0, first_s=560)]
    for history in ([*start, *before, *paused, *after], [*start, *after]):
        found = find_bottleneck(history, generators(), idle_then_busy)
        assert (found.kind, found.generator_idle_ratio) == ("balanced", 0.0)
    assert find_bottleneck([*start, *before, *paused, *after[:2]], generators(), idle_then_busy).kind == "unknown"


def test_nothing_is_suggested_that_is_wanted_already_or_that_the_machine_does_not_hold() -> None:
    waiting, alive = rounds(0.5), generators(2)
    assert find_bottleneck(waiting, alive, looks(0.0)).suggested_generators == 4
    assert find_bottleneck(waiting, alive, looks(0.0), generators_target=4).suggested_generators is None
    assert find_bottleneck(waiting, alive, looks(0.0), most_generators=2).suggested_generators is None
    assert find_bottleneck(waiting, alive, looks(0.0), most_generators=3).suggested_generators == 3


def test_the_time_left_is_that_of_the_newest_regular_rounds() -> None:
    slow_start = rounds(0.0, 1, first=0, round_s=300.0, learner_wait_s=290.0)
    assert seconds_left(slow_start, 10) is None
    assert seconds_left([*slow_start, *rounds(0.1, 5)], 16) == 100.0
    outlier = rounds(0.0, 1, first=6, round_s=100.0, train_s=90.0)
    assert seconds_left([*slow_start, *rounds(0.1, 5), *outlier], 17) == 100.0
    assert seconds_left(rounds(0.1, 5), 6) == seconds_left(rounds(0.1, 5), 3) == 0.0
    assert seconds_left(rounds(0.1, 5), 0) is None
