"""What people request of a run, as it stands in Redis.

Three requests stand until they are changed: how many generators, paused, stop after this round. Two stand until the
learner has done them: a checkpoint, and a rollback to a version. So a learner that dies during one finds it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
import structlog

from services.errors import ContractError
from services.streams import scripts
from services.streams.connection import Keys
from services.streams.fence import UNFENCED, Fence

MAX_GENERATORS = 10_000
"""More than this is a typing error."""
MAX_VERSION = 99_999_999
"""No version is above this."""

log = structlog.get_logger()

_PAUSED, _STOP, _CHECKPOINT, _ROLLBACK = b"paused", b"stop_after_round", b"checkpoint", b"rollback_to"
_LIMIT = b"generators_limit"


@dataclass(frozen=True, slots=True)
class ControlState:
    """The requests as they stand."""

    generators_target: int | None = None
    """How many generators there should be; None: nobody has requested a number, generator.count holds."""
    generators_limit: int | None = None
    """Most generators that the run's machine has room for; None: no limit is known."""
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

    def __init__(self, client: redis.Redis, keys: Keys, fence: Fence = UNFENCED) -> None:
        self._client = client
        self._keys = keys
        self._request = fence.script(client, keys, scripts.REQUEST)
        self._clear = fence.script(client, keys, scripts.CLEAR_REQUEST)

    def state(self) -> ControlState:
        """One round trip."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.get(self._keys.generators_target)
        pipe.hgetall(self._keys.control)
        return _state(*pipe.execute())

    def set_paused(self, paused: bool) -> None:
        """Pauses or resumes the run."""
        self._request([self._keys.control], [_PAUSED, int(paused)])

    def request_rollback(self, weight_version: int) -> None:
        """Requests a rollback to the checkpoint of that version; replaces an earlier request."""
        self._request([self._keys.control], [_ROLLBACK, weight_version])

    def checkpoint_done(self) -> None:
        """Ends the request for a checkpoint: what was trained when it came is durable."""
        self._clear_request(_CHECKPOINT, 1)

    def rollback_done(self, weight_version: int) -> None:
        """Ends the request for a rollback to that version, done or impossible; one to another version stands."""
        self._clear_request(_ROLLBACK, weight_version)

    def _clear_request(self, field: bytes, value: int) -> None:
        self._clear([self._keys.control], [field, value])


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
        """Raises ContractError unless 0 <= target <= MAX_GENERATORS, and when the machine has no room for them."""
        if not 0 <= target <= MAX_GENERATORS:
            raise ContractError(f"{target} generators were requested, the limits are 0 and {MAX_GENERATORS}")
        limit = _number(await self._client.hget(self._keys.control, _LIMIT), MAX_GENERATORS)
        if limit is not None and target > limit:
            raise ContractError(
                f"{target} generators were requested, and the GPUs of the run's machine suffice for {limit}",
                hint=f"request {limit} at most; `sept generator` adds one on another machine",
            )
        await self._client.set(self._keys.generators_target, target)

    async def set_generators_limit(self, limit: int | None) -> None:
        """How many generators the run's machine has room for; None: any number."""
        if limit is None:
            await self._client.hdel(self._keys.control, _LIMIT)
        else:
            await self._client.hset(self._keys.control, mapping={_LIMIT: limit})

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
    """What cannot be read counts as not requested: nothing that stands in Redis may end a run."""
    return ControlState(
        generators_target=_number(target, MAX_GENERATORS),
        generators_limit=_number(flags.get(_LIMIT), MAX_GENERATORS),
        paused=flags.get(_PAUSED) == b"1",
        stop_after_round=flags.get(_STOP) == b"1",
        checkpoint=flags.get(_CHECKPOINT) == b"1",
        rollback_to=_number(flags.get(_ROLLBACK), MAX_VERSION),
    )


def _number(text: bytes | None, limit: int) -> int | None:
    """The number if it is one up to the limit."""
    if text is None or (text.isdigit() and len(text) <= len(str(limit)) and int(text) <= limit):
        return None if text is None else int(text)
    log.warning("request_unreadable", value=repr(text[:32]), limit=limit)
    return None
