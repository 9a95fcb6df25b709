"""What the learner reports about itself, up to its last heartbeat."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from learner.monitoring.heartbeat import LEARNER_ID, HeartbeatReporter
from learner.outcome import Outcome
from services.contracts import Heartbeat, Part
from services.streams.connection import Keys, connect
from services.streams.heartbeats import Heartbeats
from tests.support.heartbeats import heartbeat

KEYS = Keys("report")


@pytest.fixture
def heartbeats(redis_url: str) -> Iterator[Heartbeats]:
    with connect(redis_url) as client:
        yield Heartbeats(client, KEYS)


def last(heartbeats: Heartbeats) -> Heartbeat:
    ((beat, _),) = heartbeats.read_all()
    return beat


@pytest.mark.parametrize(
    ("outcome", "state", "message"),
    [
        (Outcome.FINISHED, "finished", ""),
        (Outcome.STOPPED, "stopped", ""),
        (Outcome.INTERRUPTED, "stopped", ""),
        (None, "failed", "the disk is full"),
    ],
)
def test_the_last_heartbeat_says_how_it_ended(
    outcome: Outcome | None, state: str, message: str, heartbeats: Heartbeats
) -> None:
    report = HeartbeatReporter(heartbeats, device="cpu", every_s=60)
    report.start()
    report.update(outcome=outcome, weight_version=5)
    report.stop(message)
    beat = last(heartbeats)
    assert (beat.part_id, beat.state, beat.message, beat.weight_version) == (LEARNER_ID, state, message, 5)


def test_the_outcome_is_failed_unless_it_was_set(heartbeats: Heartbeats) -> None:
    report = HeartbeatReporter(heartbeats, device="cpu", every_s=60)
    report.start()
    report.stop()
    assert last(heartbeats).state == "failed"


def test_a_living_generator_above_a_version_is_seen(heartbeats: Heartbeats) -> None:
    report = HeartbeatReporter(heartbeats, device="cpu", every_s=60)
    assert not report.has_generator_above(0)
    heartbeats.send(heartbeat(Part.GENERATOR, "generator-0", "generating", weight_version=4))
    assert report.has_generator_above(3)
    assert not report.has_generator_above(4)
    silent = HeartbeatReporter(heartbeats, device="cpu", every_s=60, lost_after_s=0)
    assert not silent.has_generator_above(3), "it has fallen silent"


def test_time_is_accounted_to_what_it_was_spent_on(heartbeats: Heartbeats) -> None:
    report = HeartbeatReporter(heartbeats, device="cpu", every_s=60)
    with report.during("training"), report.during("waiting_for_rollouts"):
        pass
    report.count_tokens(120)
    report.start()
    report.stop()
    beat = last(heartbeats)
    assert {"starting", "training", "waiting_for_rollouts"} <= beat.shares.keys()
    assert sum(beat.shares.values()) == pytest.approx(1)
    assert beat.tokens_per_s > 0
    assert report.seconds_in("waiting_for_rollouts") > 0
    assert report.seconds_in("dancing") == 0
