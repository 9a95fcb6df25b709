"""Owns what people ask of a run; others make it so.

Three wishes stand until they are taken back: how many generators, paused, stop after this round. Two are asked for once
and stand until the learner says that they are done: a checkpoint, and going back to a version. So a learner that dies
over one of them finds it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio

from services.errors import ContractError
from services.streams import scripts
from services.streams.connection import Keys

MAX_GENERATORS = 10_000
"""More than this is a slip of the finger."""

_PAUSED, _STOP, _CHECKPOINT, _ROLLBACK = b"paused", b"stop_after_round", b"checkpoint", b"rollback_to"


@dataclass(frozen=True, slots=True)
class ControlState:
    """The wishes as they stand."""

    desired_generators: int | None = None
    """None: nobody has said; the config's number holds."""
    paused: bool = False
    """No new task starts; what runs is finished."""
    stop_after_round: bool = False
    """The learner ends the run, resumable, when its current round is durable."""
    checkpoint: bool = False
    """The learner writes a checkpoint between two rounds, whatever checkpoint.every_rounds says."""
    rollback_to: int | None = None
    """The learner goes back to its checkpoint of this version between two rounds."""


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

    def ask_checkpoint(self) -> None:
        """Asks for a checkpoint after the current round."""
        self._client.hset(self._keys.control, mapping={_CHECKPOINT: 1})

    def ask_rollback(self, weight_version: int) -> None:
        """Asks the learner to go back to its checkpoint of that version; a later wish replaces it."""
        self._client.hset(self._keys.control, mapping={_ROLLBACK: weight_version})

    def checkpoint_done(self) -> None:
        """What was trained when the wish came is durable."""
        self._fulfil(_CHECKPOINT, 1)

    def rollback_done(self, weight_version: int) -> None:
        """The learner went back to that version, or cannot; a wish for another one stands."""
        self._fulfil(_ROLLBACK, weight_version)

    def _fulfil(self, field: bytes, value: int) -> None:
        self._client.eval(scripts.FULFIL, 1, self._keys.control, field, value)


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

    async def ask_checkpoint(self) -> None:
        """Asks for a checkpoint after the current round."""
        await self._client.hset(self._keys.control, mapping={_CHECKPOINT: 1})

    async def ask_rollback(self, weight_version: int) -> None:
        """Asks the learner to go back to its checkpoint of that version; a later wish replaces it."""
        await self._client.hset(self._keys.control, mapping={_ROLLBACK: weight_version})


def _checked(count: int) -> int:
    if not 0 <= count <= MAX_GENERATORS:
        raise ContractError(f"{count} generators were asked for, the limits are 0 and {MAX_GENERATORS}")
    return count


def _state(desired: bytes | None, flags: dict[bytes, bytes]) -> ControlState:
    if desired is not None and not (desired.isdigit() and len(desired) <= len(str(MAX_GENERATORS))):
        raise ContractError(f"desired number of generators in Redis is {desired[:32]!r}", hint="set it anew")
    rollback = flags.get(_ROLLBACK, b"")
    return ControlState(
        desired_generators=None if desired is None else int(desired),
        paused=flags.get(_PAUSED) == b"1",
        stop_after_round=flags.get(_STOP) == b"1",
        checkpoint=flags.get(_CHECKPOINT) == b"1",
        rollback_to=int(rollback) if rollback.isdigit() else None,
    )
