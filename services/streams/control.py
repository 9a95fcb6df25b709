"""Owns what people ask of a run: how many generators, paused, stop after this round; others make it so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio

from services.errors import ContractError
from services.streams.connection import Keys

MAX_GENERATORS = 10_000
"""More than this is a slip of the finger."""

_PAUSED, _STOP = b"paused", b"stop_after_round"


@dataclass(frozen=True, slots=True)
class ControlState:
    """The wishes as they stand."""

    desired_generators: int | None = None
    """None: nobody has said; the config's number holds."""
    paused: bool = False
    """No new task starts; what runs is finished."""
    stop_after_round: bool = False
    """The learner ends the run, resumable, when its current round is durable."""


class Control:
    """For parts that live in threads."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def state(self) -> ControlState:
        """One round trip."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.get(self._keys.desired)
        pipe.hgetall(self._keys.control)
        return _state(*pipe.execute())

    def set_desired_generators(self, count: int) -> None:
        """Raises ContractError unless 0 <= count <= MAX_GENERATORS."""
        self._client.set(self._keys.desired, _checked(count))

    def set_paused(self, paused: bool) -> None:
        """Pauses or resumes the run."""
        self._client.hset(self._keys.control, mapping={_PAUSED: int(paused)})

    def set_stop_after_round(self, stop: bool) -> None:
        """Asks the learner to end the run after its round, or takes that back."""
        self._client.hset(self._keys.control, mapping={_STOP: int(stop)})


class AsyncControl:
    """For parts that live in an event loop; methods as those of Control."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys) -> None:
        # Any: redis-py types the replies of its asyncio commands as "value or awaitable".
        self._client: Any = client
        self._keys = keys

    async def state(self) -> ControlState:
        """One round trip."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.get(self._keys.desired)
        pipe.hgetall(self._keys.control)
        return _state(*await pipe.execute())

    async def set_desired_generators(self, count: int) -> None:
        """Raises ContractError unless 0 <= count <= MAX_GENERATORS."""
        await self._client.set(self._keys.desired, _checked(count))

    async def set_paused(self, paused: bool) -> None:
        """Pauses or resumes the run."""
        await self._client.hset(self._keys.control, mapping={_PAUSED: int(paused)})

    async def set_stop_after_round(self, stop: bool) -> None:
        """Asks the learner to end the run after its round, or takes that back."""
        await self._client.hset(self._keys.control, mapping={_STOP: int(stop)})


def _checked(count: int) -> int:
    if not 0 <= count <= MAX_GENERATORS:
        raise ContractError(f"{count} generators were asked for, the limits are 0 and {MAX_GENERATORS}")
    return count


def _state(desired: bytes | None, flags: dict[bytes, bytes]) -> ControlState:
    if desired is not None and not (desired.isdigit() and len(desired) <= len(str(MAX_GENERATORS))):
        raise ContractError(f"desired number of generators in Redis is {desired[:32]!r}", hint="set it anew")
    return ControlState(
        desired_generators=None if desired is None else int(desired),
        paused=flags.get(_PAUSED) == b"1",
        stop_after_round=flags.get(_STOP) == b"1",
    )
