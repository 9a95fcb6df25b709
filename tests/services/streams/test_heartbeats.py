"""Heartbeats: the last of each part, with its age by one clock."""

from __future__ import annotations

from typing import Any

import pytest
import redis
import redis.asyncio

from services.contracts import Heartbeat, Part
from services.streams.connection import Keys
from services.streams.heartbeats import AsyncHeartbeats, Heartbeats


def beat(part_id: str, **changes: Any) -> Heartbeat:
    settings: dict[str, Any] = {
        "part": Part.GENERATOR,
        "part_id": part_id,
        "state": "generating",
        "shares": {"generating": 1.0},
        "host": "here",
        "pid": 1,
        "device": "cpu",
    }
    return Heartbeat(**(settings | changes))


async def test_the_last_heartbeat_of_every_part_is_read(
    client: redis.Redis, async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    Heartbeats(client, keys).send(beat("learner-0", part=Part.LEARNER))
    sender = AsyncHeartbeats(async_client, keys)
    await sender.send(beat("g1", in_flight=1))
    await sender.send(beat("g1", in_flight=2))
    beats = await AsyncHeartbeats(async_client, keys).read_all()
    assert [(heartbeat.part_id, heartbeat.in_flight) for heartbeat, _ in beats] == [("g1", 2), ("learner-0", 0)]
    assert all(0 <= age_s < 60 for _, age_s in beats)


async def test_the_age_is_counted_from_the_time_redis_noted(async_client: redis.asyncio.Redis, keys: Keys) -> None:
    seconds, microseconds = await async_client.time()
    stored: Any = {"g1": f"{seconds - 100}.{microseconds:06d} {beat('g1').model_dump_json()}"}
    await async_client.hset(keys.heartbeats, mapping=stored)
    [(_, age_s)] = await AsyncHeartbeats(async_client, keys).read_all()
    assert 100 <= age_s < 160


async def test_a_heartbeat_is_never_younger_than_now(async_client: redis.asyncio.Redis, keys: Keys) -> None:
    """Redis' clock may be put back."""
    seconds, _ = await async_client.time()
    stored: Any = {"g1": f"{seconds + 100}.0 {beat('g1').model_dump_json()}"}
    await async_client.hset(keys.heartbeats, mapping=stored)
    assert [age_s for _, age_s in await AsyncHeartbeats(async_client, keys).read_all()] == [0.0]


async def test_a_forgotten_part_is_no_longer_read(async_client: redis.asyncio.Redis, keys: Keys) -> None:
    await AsyncHeartbeats(async_client, keys).send(beat("g1"))
    await AsyncHeartbeats(async_client, keys).forget("g1")
    assert await AsyncHeartbeats(async_client, keys).read_all() == []


@pytest.mark.parametrize("value", [b"", b"12.5", b"12.5 {}", b"soon {}", b"\xff\xff \xff", b'1 {"schema_version":2}'])
async def test_an_unreadable_heartbeat_is_removed_and_hides_no_other(
    async_client: redis.asyncio.Redis, keys: Keys, value: bytes
) -> None:
    await AsyncHeartbeats(async_client, keys).send(beat("g1"))
    stored: Any = {"g2": value}
    await async_client.hset(keys.heartbeats, mapping=stored)
    assert [heartbeat.part_id for heartbeat, _ in await AsyncHeartbeats(async_client, keys).read_all()] == ["g1"]
    assert await async_client.hkeys(keys.heartbeats) == [b"g1"]
