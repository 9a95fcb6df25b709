"""Nothing that stands in Redis keeps a learner from starting and working."""

from __future__ import annotations

import pytest
import redis

from services.streams.connection import Keys
from services.streams.control import Control
from services.streams.events import EventLog
from services.streams.heartbeats import Heartbeats
from services.streams.key_check import restore_keys
from services.streams.rollouts import RolloutReader
from services.streams.tasks import TaskIssuer
from services.streams.wire import encode_rollout
from tests.support.stream_builders import last_events, make_rollouts, make_task

LAST = b"18446744073709551615-18446744073709551615"
NAMES = [
    "tasks", "open", "incarnation", "counters", "rollouts", "dead_letters", "heartbeats", "events",
    "generators_target", "control", "epoch", "refused", "learner_heartbeats", "generator_events",
]  # fmt: skip


def work(client: redis.Redis, keys: Keys) -> None:
    """What a learner does with each of the keys."""
    issuer, reader = TaskIssuer(client, keys), RolloutReader(client, keys)
    assert issuer.alive()
    issuer.issue([make_task(0)])
    issuer.refuse("g", 60, "why")
    for entry_id, rollout in reader.read(0):
        reader.bury(entry_id, rollout, "why")
    EventLog(client, keys).append("learner", "published")
    Control(client, keys).state()
    Heartbeats(client, keys).read_all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["string", "list", "hash"])
def test_a_key_of_another_type_is_removed(name: str, kind: str, client: redis.Redis, keys: Keys) -> None:
    key = getattr(keys, name)
    if kind == "string":
        client.set(key, b"\xff")
    elif kind == "list":
        client.rpush(key, "x")
    else:
        client.hset(key, "a", "b")
    restore_keys(client, keys)
    work(client, keys)


@pytest.mark.parametrize("name", ["tasks", "rollouts", "dead_letters", "events", "generator_events"])
def test_an_entry_after_which_nothing_could_be_added_is_removed(name: str, client: redis.Redis, keys: Keys) -> None:
    work(client, keys)
    client.xadd(keys.rollouts, encode_rollout(make_rollouts(make_task(0))[0]))  # type: ignore[arg-type]
    client.xadd(getattr(keys, name), {"a": "b"}, id=LAST)
    restore_keys(client, keys)
    work(client, keys)
    assert [event.kind for event in last_events(client, keys)] == ["published", "published"], "the others stay"
    assert client.xlen(keys.tasks) == 1


def test_sound_keys_are_left_alone(client: redis.Redis, keys: Keys) -> None:
    work(client, keys)
    before = {key: client.dump(key) for key in client.scan_iter()}
    restore_keys(client, keys)
    assert {key: client.dump(key) for key in client.scan_iter()} == before
