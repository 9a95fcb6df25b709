"""A generator whose canaries are watched."""

from __future__ import annotations

import asyncio

from services.streams.events import AsyncEventLog, Event
from tests.support.generator_world import World


async def canary_failures(world: World) -> list[Event]:
    events = await AsyncEventLog(world.endpoint.redis, world.endpoint.keys).tail(10)
    return [event for event in events if event.kind == "canary_failed"]


async def started(world: World) -> None:
    """Wait for vLLM, which takes longer than PATIENCE_S."""
    for _ in range(1200):
        if await world.heartbeat() is not None:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("vLLM did not start")
