"""What the supervisor reads from the run's Redis: how many generators are wanted, and what the parts said last."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from redis.exceptions import RedisError

from services.errors import ContractError, UnavailableError
from services.streams.connection import Keys, connect_async
from services.streams.control import AsyncControl
from services.streams.events import AsyncEventLog

LOOK_EVERY_S = 1.0
LAST_EVENTS = 200
LAST_LOOK_S = 3.0


class DesiredInRedis:
    """The wanted number of generators, as `sept scale` and the page set it. Starts at the config's number."""

    def __init__(self, url: str, run_id: str, count: int, startup_s: float) -> None:
        self._url = url
        self._keys = Keys(run_id)
        self._count = count
        self._startup_s = startup_s

    async def follow(self) -> AsyncIterator[int]:
        """Yields the number about every second; says nothing while Redis is away."""
        client = await connect_async(self._url, deadline_s=self._startup_s)
        try:
            control = AsyncControl(client, self._keys)
            await control.set_generators_target(self._count)
            await control.set_stop_after_round(False)  # that wish ended the run before; starting it again takes it back
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                try:
                    wanted = (await control.state()).generators_target
                except (RedisError, UnavailableError, ContractError):
                    continue  # the supervisor is restarting Redis, or a person is mending it
                yield self._count if wanted is None else wanted
        finally:
            await client.aclose()


async def last_events(url: str, run_id: str) -> list[dict[str, Any]]:
    """The last events that the parts shared; none when Redis is what failed."""
    try:
        client = await connect_async(url, deadline_s=LAST_LOOK_S)
    except UnavailableError:
        return []
    try:
        return [dataclasses.asdict(event) for event in await AsyncEventLog(client, Keys(run_id)).tail(LAST_EVENTS)]
    except (RedisError, UnavailableError):
        return []
    finally:
        await client.aclose()
