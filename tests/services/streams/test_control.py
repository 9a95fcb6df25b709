"""What people request of a run."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

from services.errors import ContractError
from services.streams.connection import Keys
from services.streams.control import MAX_GENERATORS, AsyncControl, Control, ControlState


async def test_nobody_has_asked_for_anything_at_first(
    client: redis.Redis, async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    assert Control(client, keys).state() == await AsyncControl(async_client, keys).state() == ControlState()


async def test_what_one_part_asks_another_sees(
    client: redis.Redis, async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    control, async_control = Control(client, keys), AsyncControl(async_client, keys)
    await async_control.set_generators_target(3)
    await async_control.set_paused(True)
    await async_control.set_stop_after_round(True)
    assert control.state() == ControlState(generators_target=3, paused=True, stop_after_round=True)
    await async_control.set_generators_target(0)
    control.set_paused(False)
    await async_control.set_stop_after_round(False)
    assert await async_control.state() == ControlState(generators_target=0)


async def test_what_is_asked_for_once_stands_until_it_is_done(
    client: redis.Redis, async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    control, async_control = Control(client, keys), AsyncControl(async_client, keys)
    await async_control.request_checkpoint()
    await async_control.request_rollback(7)
    assert control.state() == ControlState(checkpoint=True, rollback_to=7)
    control.request_rollback(9)
    control.rollback_done(7)
    assert control.state().rollback_to == 9, "somebody wanted another version meanwhile"
    control.rollback_done(9)
    control.checkpoint_done()
    assert await async_control.state() == ControlState()


@pytest.mark.parametrize("target", [-1, MAX_GENERATORS + 1])
async def test_an_impossible_number_of_generators_is_refused(
    async_client: redis.asyncio.Redis, keys: Keys, target: int
) -> None:
    with pytest.raises(ContractError, match="limits are 0 and"):
        await AsyncControl(async_client, keys).set_generators_target(target)


async def test_more_generators_than_the_machine_has_room_for_are_refused(
    async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    control = AsyncControl(async_client, keys)
    await control.set_generators_limit(2)
    with pytest.raises(ContractError, match=r"3 generators were requested.*suffice for 2"):
        await control.set_generators_target(3)
    await control.set_generators_target(2)
    assert await control.state() == ControlState(generators_target=2, generators_limit=2)
    await control.set_generators_limit(None)
    await control.set_generators_target(3)
    assert await control.state() == ControlState(generators_target=3)


@pytest.mark.parametrize("value", [b"", b"-1", b"many", b"9" * 9999])
def test_what_cannot_be_read_counts_as_not_requested(client: redis.Redis, keys: Keys, value: bytes) -> None:
    """It would end every learner that is started on it."""
    client.set(keys.generators_target, value)
    client.hset(keys.control, mapping={"rollback_to": value, "paused": value})
    assert Control(client, keys).state() == ControlState()


@pytest.mark.parametrize("value", [MAX_GENERATORS + 1, 99999])
def test_a_number_of_generators_beyond_the_limit_counts_as_not_requested(
    client: redis.Redis, keys: Keys, value: int
) -> None:
    client.set(keys.generators_target, value)
    assert Control(client, keys).state() == ControlState()
    client.set(keys.generators_target, MAX_GENERATORS)
    assert Control(client, keys).state().generators_target == MAX_GENERATORS
