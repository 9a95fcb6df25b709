"""The supervisor hears how many generators a person asked for, however Redis is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from deploy.local import generators_target
from deploy.local.generators_target import GeneratorsTargetInRedis
from services.errors import ContractError
from services.streams.connection import Keys
from services.streams.control import AsyncControl

KEYS = Keys("run")


@pytest.fixture(autouse=True)
def read_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators_target, "READ_EVERY_S", 0.01)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


async def heard(numbers: AsyncIterator[int], expected: int) -> None:
    """Listen until that number is heard."""
    async with asyncio.timeout(30):
        while await anext(numbers) != expected:
            pass


async def test_the_number_of_the_settings_holds_until_a_person_asks_for_another(redis: Redis, redis_url: str) -> None:
    control = AsyncControl(redis, KEYS)
    await control.set_generators_target(7)  # of an earlier start
    numbers = aiter(GeneratorsTargetInRedis(redis_url, "run", 2, 30.0).follow())
    assert await anext(numbers) == 2
    await control.set_generators_target(0)
    await heard(numbers, 0)
    await redis.delete(KEYS.generators_target)
    await heard(numbers, 2)


async def test_a_start_revokes_the_stop_that_ended_the_run_before(redis: Redis, redis_url: str) -> None:
    control = AsyncControl(redis, KEYS)
    await control.set_stop_after_round(True)
    await control.set_paused(True)
    await anext(aiter(GeneratorsTargetInRedis(redis_url, "run", 2, 30.0).follow()))
    state = await control.state()
    assert (state.stop_after_round, state.paused) == (False, True), "a pause stands until somebody resumes the run"


async def test_whoever_asks_for_more_than_the_machine_has_room_for_is_told(redis: Redis, redis_url: str) -> None:
    control = AsyncControl(redis, KEYS)
    await anext(aiter(GeneratorsTargetInRedis(redis_url, "run", 1, 30.0, limit=2).follow()))
    await control.set_generators_target(2)
    with pytest.raises(ContractError, match="3 generators were requested"):
        await control.set_generators_target(3)
    await anext(aiter(GeneratorsTargetInRedis(redis_url, "run", 1, 30.0).follow()))  # on a machine without GPUs
    await control.set_generators_target(3)
    assert (await control.state()).generators_target == 3


async def test_what_cannot_be_read_is_waited_out(redis: Redis, redis_url: str) -> None:
    numbers = aiter(GeneratorsTargetInRedis(redis_url, "run", 2, 30.0).follow())
    assert await anext(numbers) == 2
    await redis.delete(KEYS.generators_target)
    await redis.rpush(KEYS.generators_target, b"of another kind")
    waiting = asyncio.ensure_future(anext(numbers))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done, "nothing is made up while it cannot be read"
    await redis.set(KEYS.generators_target, 5)
    async with asyncio.timeout(30):
        assert await waiting == 5
