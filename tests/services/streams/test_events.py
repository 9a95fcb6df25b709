"""Events: in order, from anywhere, without a gap."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis
import redis.asyncio

from services.errors import ContractError
from services.streams.connection import Keys
from services.streams.events import MALFORMED, MAX_EVENTS, AsyncEventLog, EventLog


@pytest.fixture
def log(client: redis.Redis, keys: Keys) -> EventLog:
    return EventLog(client, keys)


@pytest.fixture
def async_log(async_client: redis.asyncio.Redis, keys: Keys) -> AsyncEventLog:
    return AsyncEventLog(async_client, keys)


async def test_what_one_part_appends_another_reads(log: EventLog, async_log: AsyncEventLog) -> None:
    first = log.append("learner-0", "published", weight_version=3, sizes=[1, 2], note="müde")
    second = await async_log.append("api", "audit", route="/v1/control/pause")
    events = await async_log.read("0", 0)
    assert events == await async_log.tail(9)
    assert [event.id for event in events] == [first, second]
    assert events[0].fields == {"weight_version": 3, "sizes": [1, 2], "note": "müde"}
    assert (events[1].source, events[1].kind) == ("api", "audit")
    assert abs(events[0].time_s - time.time()) < 60


async def test_reading_goes_on_after_an_event(log: EventLog, async_log: AsyncEventLog) -> None:
    ids = [log.append("a", "step", number=number) for number in range(5)]
    assert [event.fields["number"] for event in await async_log.read(ids[1], 0, count=2)] == [2, 3]
    assert await async_log.read(ids[-1], 0) == []
    assert [event.id for event in await async_log.tail(2)] == ids[-2:]


async def test_reading_from_the_last_id_waits_for_what_comes(log: EventLog, async_log: AsyncEventLog) -> None:
    assert await async_log.last_id() == "0"
    log.append("a", "before")
    waiting = asyncio.create_task(async_log.read(await async_log.last_id(), block_s=60))
    await asyncio.to_thread(log.append, "a", "after")
    async with asyncio.timeout(10):
        assert [event.kind for event in await waiting] == ["after"]


async def test_waiting_ends_with_nothing_when_its_time_is_over(async_log: AsyncEventLog) -> None:
    assert await async_log.read("0", block_s=0.05) == []


@pytest.mark.parametrize("after_id", ["", "$", "-1", "1-", "1-2-3", "١", "1\n", "9" * 30, "0 COUNT 1"])
async def test_an_id_that_is_none_is_refused(async_log: AsyncEventLog, after_id: str) -> None:
    with pytest.raises(ContractError, match="not the id of an event"):
        await async_log.read(after_id, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {b"x": b"y"},
        {b"source": b"a", b"kind": b"b", b"fields": b"["},
        {b"source": b"a", b"kind": b"b", b"fields": b"[]"},
        {b"source": b"a", b"kind": b"b", b"fields": b'{"x": NaN}'},
        {b"source": b"a", b"kind": b"b", b"fields": b'{"x": [1e999]}'},
        {b"source": b"\xff", b"kind": b"b", b"fields": b"{}"},
    ],
)
async def test_an_unreadable_event_is_shown_as_such_and_passed(
    client: redis.Redis, keys: Keys, log: EventLog, async_log: AsyncEventLog, fields: dict[bytes, bytes]
) -> None:
    client.xadd(keys.events, dict(fields.items()))
    log.append("a", "fine")
    events = await async_log.read("0", 0)
    assert [event.kind for event in events] == [MALFORMED, "fine"]
    assert [event.kind for event in await async_log.read(events[0].id, 0)] == ["fine"]


async def test_the_log_is_capped(client: redis.Redis, keys: Keys, log: EventLog, async_log: AsyncEventLog) -> None:
    pipe = client.pipeline(transaction=False)
    for _ in range(MAX_EVENTS + 500):
        pipe.xadd(keys.events, {b"x": b""})
    pipe.execute()
    log.append("a", "last")
    assert client.xlen(keys.events) < MAX_EVENTS + 200
    assert (await async_log.tail(1))[0].kind == "last"
