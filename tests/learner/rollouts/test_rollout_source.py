"""Rounds are issued as versions admit them, or a fixed set once; rollouts stay for as long as a round needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import redis

from learner.rollouts.collector import Collector
from learner.rollouts.rollout_source import FixedSource, OnlineSource, RolloutSource
from services.errors import CheckpointError
from services.streams.connection import Keys, connect
from services.streams.rollouts import RolloutReader
from services.streams.tasks import TaskIssuer
from tests.support.answering import answer
from tests.support.curricula import curriculum

KEYS = Keys("supply")
PER_ROUND = 4


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def collector(client: redis.Redis) -> Iterator[Collector]:
    made = Collector(TaskIssuer(client, KEYS), RolloutReader(client, KEYS), first_round=0, look_every_s=0.05)
    made.start()
    yield made
    made.stop()


def online_source(collector: Collector, *, max_staleness: int, rounds: int = 5) -> RolloutSource:
    course = curriculum(40, PER_ROUND, rounds=rounds, max_staleness=max_staleness)
    return OnlineSource(course, collector, max_staleness=max_staleness, deadline_s=10, waiting=nullcontext)


def fixed_source(collector: Collector) -> RolloutSource:
    """Three epochs of two rounds each."""
    course = curriculum(2 * PER_ROUND, PER_ROUND, data="fixed", epochs=3)
    return FixedSource(course, collector, deadline_s=10, waiting=nullcontext)


def issued(client: redis.Redis) -> list[int]:
    """The round of every open task, ascending."""
    task_ids: list[bytes] = client.hkeys(KEYS.open)  # type: ignore[assignment]
    return sorted(int(task_id[1:7]) for task_id in task_ids)


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_version_admits_the_round_that_lies_max_staleness_ahead(
    max_staleness: int, client: redis.Redis, collector: Collector
) -> None:
    source = online_source(collector, max_staleness=max_staleness)
    source.begin(1)
    admitted = list(range(1, 2 + max_staleness))
    assert issued(client) == sorted(admitted * PER_ROUND)
    source.admit(2)
    assert issued(client) == sorted([*admitted, 2 + max_staleness] * PER_ROUND)


def test_no_round_is_issued_past_the_last(client: redis.Redis, collector: Collector) -> None:
    source = online_source(collector, max_staleness=3, rounds=2)
    source.begin(0)
    source.admit(1)
    assert issued(client) == sorted([0, 1] * PER_ROUND)


def test_what_a_checkpoint_contains_is_released(redis_url: str, client: redis.Redis, collector: Collector) -> None:
    source = online_source(collector, max_staleness=1)
    source.begin(0)
    answer(redis_url, KEYS)
    assert [rollout.round for round_ in (0, 1) for rollout in source.rollouts(round_)] == [0] * PER_ROUND + [
        1
    ] * PER_ROUND
    source.release(1)
    assert client.xlen(KEYS.rollouts) == PER_ROUND


def test_rounds_that_are_done_again_are_forgotten(redis_url: str, client: redis.Redis, collector: Collector) -> None:
    source = online_source(collector, max_staleness=1)
    source.begin(0)
    answer(redis_url, KEYS)
    assert len(list(source.rollouts(1))) == PER_ROUND
    source.admit(1)
    source.discard_from(1)
    assert (issued(client), client.xlen(KEYS.rollouts), collector.held) == ([], 0, 0)


def test_a_fixed_set_is_issued_whole_and_kept_until_the_last_round(
    redis_url: str, client: redis.Redis, collector: Collector
) -> None:
    source = fixed_source(collector)
    source.begin(0)
    assert issued(client) == sorted([0, 1] * PER_ROUND)
    answer(redis_url, KEYS)
    first = [rollout.response_tokens.tolist() for rollout in source.rollouts(0)]
    source.release(1)
    source.discard_from(0)
    source.admit(1)
    assert issued(client) == []
    assert [rollout.response_tokens.tolist() for rollout in source.rollouts(0)] == first
    assert client.xlen(KEYS.rollouts) == 2 * PER_ROUND
    source.release(6)
    assert client.xlen(KEYS.rollouts) == 0


def test_a_fixed_set_that_is_gone_is_not_drawn_from_a_later_version(collector: Collector) -> None:
    with pytest.raises(CheckpointError, match="lacks answers to round 0, and the run is at version 3"):
        fixed_source(collector).begin(3)
