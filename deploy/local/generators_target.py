"""The number of generators that a person asked for, as the supervisor reads it from the run's Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from redis.exceptions import RedisError

from services.errors import ContractError, UnavailableError
from services.streams.connection import Keys, connect_async, is_cancelled
from services.streams.control import AsyncControl

READ_EVERY_S = 1.0


class GeneratorsTargetInRedis:
    """What `sept scale` and the page set; generator.count until then."""

    def __init__(
        self, redis_url: str, run_id: str, generators_target: int, startup_s: float, *, limit: int | None = None
    ) -> None:
        """`limit`: the most that this machine has room for, which those who request more are told."""
        self._redis_url = redis_url
        self._keys = Keys(run_id)
        self._first = generators_target
        self._startup_s = startup_s
        self._limit = limit

    async def follow(self) -> AsyncIterator[int]:
        """Yields the number about every second, and nothing while Redis does not answer."""
        client = await connect_async(self._redis_url, deadline_s=self._startup_s)
        try:
            control = AsyncControl(client, self._keys)
            await control.set_generators_limit(self._limit)
            await control.set_generators_target(self._first)
            await control.set_stop_after_round(False)  # that request ended the run before; starting again revokes it
            while not is_cancelled():
                await asyncio.sleep(READ_EVERY_S)
                try:
                    generators_target = (await control.state()).generators_target
                except (RedisError, UnavailableError, ContractError):
                    continue  # the supervisor restarts Redis, or a person repairs it
                yield self._first if generators_target is None else generators_target
        finally:
            await client.aclose()
