"""What people request of a run, as it stands in Redis.

Three requests stand until they are changed: how many generators, paused, stop after this round. Two stand until the
learner has done them: a checkpoint, and a rollback to a version. So a learner that dies during one finds it again.
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
"""More than this is a typing error."""

_PAUSED, _STOP, _CHECKPOINT, _ROLLBACK = b"paused", b"stop_after_round", b"checkpoint", b"rollback_to"


@dataclass(frozen=True, slots=True)
class ControlState:
    """The requests as they stand."""

    generators_target: int | None = None
    """How many generators there should be; None: nobody has requested a number, generator.count holds."""
    paused: bool = False
    """No new task starts; running ones are finished."""
    stop_after_round: bool = False
    """The learner ends the run, resumable, when its current round is durable."""
    checkpoint: bool = False
    """The learner writes a checkpoint between two rounds, whatever checkpoint.every_rounds says."""
    rollback_to: int | None = None
    """The learner goes back to its checkpoint of this version between two rounds."""


class Control:
    """What the learner reads and answers, from threads."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def state(self) -> ControlState:
        """One round trip."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.get(self._keys.generators_target)
        pipe.hgetall(self._keys.control)
        return _state(*pipe.execute())

    def set_paused(self, paused: bool) -> None:
        """Pauses or resumes the run."""
        self._client.hset(self._keys.control, mapping={_PAUSED: int(paused)})

    def request_rollback(self, weight_version: int) -> None:
        """Requests a rollback to the checkpoint of that version; replaces an earlier request."""
        self._client.hset(self._keys.control, mapping={_ROLLBACK: weight_version})

    def checkpoint_done(self) -> None:
        """Ends the request for a checkpoint: what was trained when it came is durable."""
        self._clear_request(_CHECKPOINT, 1)

    def rollback_done(self, weight_version: int) -> None:
        """Ends the request for a rollback to that version, done or impossible; one to another version stands."""
        self._clear_request(_ROLLBACK, weight_version)

    def _clear_request(self, field: bytes, value: int) -> None:
        self._client.eval(scripts.CLEAR_REQUEST, 1, self._keys.control, field, value)


class AsyncControl:
    """What people request and everybody reads, from event loops."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys) -> None:
        # Any: redis-py types the replies of its asyncio commands as "value or awaitable".
        self._client: Any = client
        self._keys = keys

    async def state(self) -> ControlState:
        """One round trip."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.get(self._keys.generators_target)
        pipe.hgetall(self._keys.control)
        return _state(*await pipe.execute())

    async def set_generators_target(self, target: int) -> None:
        """Raises ContractError unless 0 <= target <= MAX_GENERATORS."""
        if not 0 <= target <= MAX_GENERATORS:
            raise ContractError(f"{target} generators were requested, the limits are 0 and {MAX_GENERATORS}")
        await self._client.set(self._keys.generators_target, target)

    async def set_paused(self, paused: bool) -> None:
        """Pauses or resumes the run."""
        await self._client.hset(self._keys.control, mapping={_PAUSED: int(paused)})

    async def set_stop_after_round(self, stop: bool) -> None:
        """Requests that the learner ends the run after its round, or withdraws that."""
        await self._client.hset(self._keys.control, mapping={_STOP: int(stop)})

    async def request_checkpoint(self) -> None:
        """Requests a checkpoint after the current round."""
        await self._client.hset(self._keys.control, mapping={_CHECKPOINT: 1})

    async def request_rollback(self, weight_version: int) -> None:
        """Requests a rollback to the checkpoint of that version; replaces an earlier request."""
        await self._client.hset(self._keys.control, mapping={_ROLLBACK: weight_version})


def _state(target: bytes | None, flags: dict[bytes, bytes]) -> ControlState:
    if target is not None and not (target.isdigit() and len(target) < 10 and int(target) <= MAX_GENERATORS):
        raise ContractError(f"the target number of generators in Redis is {target[:32]!r}", hint="set it anew")
    rollback = flags.get(_ROLLBACK, b"")
    return ControlState(
        generators_target=None if target is None else int(target),
        paused=flags.get(_PAUSED) == b"1",
        stop_after_round=flags.get(_STOP) == b"1",
        checkpoint=flags.get(_CHECKPOINT) == b"1",
        rollback_to=int(rollback) if rollback.isdigit() else None,
    )
