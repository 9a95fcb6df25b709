"""The task queue: issued by the learner, leased and completed by generators, exactly one completion per issue.

The queue is one stream with one consumer group. An entry that is delivered but not acknowledged is a lease; its idle
time is the lease's age. One script acknowledges a task and adds its rollouts, so at no moment is a task lost or done
twice.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import redis
import redis.asyncio
import structlog
from redis.exceptions import ResponseError

from services.contracts import Rollout, Task
from services.errors import ContractError, UnavailableError
from services.streams import scripts
from services.streams.connection import Keys, block_ms
from services.streams.dead_letters import MAX_DEAD_LETTERS, letter_fields
from services.streams.fence import UNFENCED, Fence
from services.streams.wire import (
    META,
    PROMPT,
    RESPONSE,
    Fields,
    claimed_task_id,
    decode_task,
    encode_rollout,
    encode_task,
    entered_at,
)

MAX_DELIVERIES = 5
"""A task whose lease ended this often without a completion becomes a dead letter: it probably kills its generator."""
ISSUE_CHUNK = 256
"""Tasks per script call: one round trip for a usual round, and no script that blocks Redis for long."""
COMPLETE_BYTES = 1 << 20
"""A script call with this many bytes of rollouts takes no further completion: it must not block Redis for long."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Lease:
    """A task that one generator may work on until the lease expires."""

    entry_id: bytes
    """Identifies this issue of the task in the stream."""
    task: Task
    deliveries: int
    """1 for the first generator that gets it."""
    queued_s: float
    """From issue to this lease, by Redis's clock."""


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """Lengths of the queues at one instant."""

    tasks_queued: int
    tasks_leased: int
    """Delivered to a generator and not completed; an expired lease counts until another generator takes it."""
    rollouts_queued: int
    """Held in Redis: not yet read, or read and waiting for a durable checkpoint."""
    dead_letters: int
    oldest_task_s: float
    """Age of the oldest task that is not completed; 0 when there is none."""
    reissued: int
    """Leases that expired and went to another generator, since the run began."""


class TaskIssuer:
    """The learner's side of the queue."""

    def __init__(self, client: redis.Redis, keys: Keys, fence: Fence = UNFENCED) -> None:
        """Opens the queue: one round trip."""
        self._keys = keys
        self._identify = fence.script(client, keys, scripts.IDENTIFY)
        self._issue = fence.script(client, keys, scripts.ISSUE)
        self._unknown = fence.script(client, keys, scripts.UNKNOWN)
        self._close = fence.script(client, keys, scripts.CLOSE)
        self._refuse = fence.script(client, keys, scripts.REFUSE)
        self._incarnation = self._identity()

    def alive(self) -> bool:
        """False, once, when Redis may have lost tasks since the last call: it restarted or came back empty.

        The queue is open again after that. The caller then rewinds its RolloutReader, reads all rollouts, and issues
        again the tasks that are neither open (`unknown`) nor answered.
        """
        known, self._incarnation = self._incarnation, self._identity()
        return self._incarnation == known

    def issue(self, tasks: Sequence[Task]) -> int:
        """Appends the tasks that are not open yet, in order; returns how many. Idempotent.

        A task that is open with other contents, as the settings were before, is replaced.
        """
        issued = 0
        for chunk in _chunks(tasks):
            args: list[str | bytes] = [scripts.GROUP, secrets.token_hex(16), *_told(chunk)]
            issued += cast(int, self._issue([self._keys.tasks, self._keys.open, self._keys.incarnation], args))
        return issued

    def unknown(self, tasks: Sequence[Task]) -> list[str]:
        """Ids of those that are not open: never issued, completed, closed, given up, or lost with Redis."""
        unknown: list[bytes] = []
        for chunk in _chunks(tasks):
            unknown += cast("list[bytes]", self._unknown([self._keys.tasks, self._keys.open], _told(chunk)))
        return [task_id.decode() for task_id in unknown]

    def refuse(self, generator_id: str, seconds: float, reason: str) -> None:
        """Lets that generator neither lease nor complete a task for so long."""
        self._refuse([self._keys.refused], [generator_id, round(seconds), reason[:500]])

    def close(self, task_ids: Sequence[str]) -> int:
        """Drops tasks wherever they are; a completion that comes later is refused. Returns how many were open."""
        if not task_ids:
            return 0
        return cast(int, self._close([self._keys.tasks, self._keys.open], [scripts.GROUP, *task_ids]))

    def _identity(self) -> bytes:
        keys = [self._keys.tasks, self._keys.incarnation]
        return cast(bytes, self._identify(keys, [scripts.GROUP, secrets.token_hex(16)]))


def _chunks(tasks: Sequence[Task]) -> Iterator[Sequence[Task]]:
    return (tasks[start : start + ISSUE_CHUNK] for start in range(0, len(tasks), ISSUE_CHUNK))


def _told(tasks: Iterable[Task]) -> list[str | bytes]:
    """(task_id meta prompt) of each, one after the other."""
    told: list[str | bytes] = []
    for task in tasks:
        fields = encode_task(task)
        told += [task.task_id, fields[META], fields[PROMPT]]
    return told


class _Delivery(NamedTuple):
    entry_id: bytes
    deliveries: int
    fields: Fields
    queued_s: float


class _Completion:
    """One call of `TaskLeaser.complete`."""

    def __init__(self, lease: Lease, rollouts: Sequence[Rollout]) -> None:
        self.entry_id = lease.entry_id
        self.args: list[str | bytes | int] = [lease.entry_id, lease.task.task_id, len(rollouts)]
        """As COMPLETE takes them."""
        self.size_bytes = 0
        self.first: bool | None = None
        """Redis' answer: whether the task was still pending."""
        for rollout in rollouts:
            fields = encode_rollout(rollout)
            payload = [fields[META], fields[PROMPT], fields[RESPONSE]]
            self.args += payload
            self.size_bytes += sum(map(len, payload))


class TaskLeaser:
    """A generator's side of the queue. The generator renews its leases well within `lease_s`."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, generator_id: str, lease_s: float) -> None:
        self._client = client
        self._keys = keys
        self._generator_id = generator_id
        self._lease_s = lease_s
        self._cursor: bytes = b"0-0"
        self._held: set[bytes] = set()
        self._unanswered: dict[_Completion, None] = {}
        """In the order of their calls."""
        self._completing = asyncio.Lock()
        self._lease = client.register_script(scripts.LEASE)
        self._renew = client.register_script(scripts.RENEW)
        self._release = client.register_script(scripts.RELEASE)
        self._leave = client.register_script(scripts.LEAVE)
        self._complete = client.register_script(scripts.COMPLETE)
        self._reject = client.register_script(scripts.REJECT)

    async def lease(self, count: int, block_s: float) -> list[Lease]:
        """Up to `count` tasks, waiting at most `block_s` for the first.

        Expired leases of others come first, since the oldest round waits for them, then new tasks in stream order.
        Entries that cannot be read, or were delivered more than MAX_DELIVERIES times, become dead letters on the way.

        Raises:
            UnavailableError: the learner refuses this generator.
        """
        if count < 1:
            return []
        give_up_at = time.monotonic() + block_s
        while True:
            try:
                leases = await self._accept(await self._take(count))
                wait_s = give_up_at - time.monotonic()
                if not leases and wait_s > 0:
                    # In slices of half a lease, because an expiry does not wake a blocked reader.
                    leases = await self._accept(await self._wait(count, min(wait_s, self._lease_s / 2)))
            except ResponseError as error:
                self._raise_if_refused(error)
                if "NOGROUP" not in str(error):
                    raise
                await self._open_group()
                leases = []
            if leases or time.monotonic() >= give_up_at:
                return leases

    async def renew(self, leases: Iterable[Lease]) -> set[bytes]:
        """Renews the leases still owned and returns their entry ids; another generator has the others."""
        entry_ids = [lease.entry_id for lease in leases]
        if not entry_ids:
            return set()
        try:
            owned = set(await self._renew([self._keys.tasks], [scripts.GROUP, self._generator_id, *entry_ids]))
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            owned = set()
        self._held -= set(entry_ids) - owned
        return owned

    async def complete(self, lease: Lease, rollouts: Sequence[Rollout]) -> bool:
        """Replaces the task by its rollouts, atomically.

        Calls that come while a request is under way share the next request.

        False when that is no longer possible, and then nothing is stored: another generator was first, or the learner
        closed the task. The first to complete wins even if its lease has expired, as its rollouts are as good.

        Raises:
            ContractError: `rollouts` are not samples 0 .. G-1 of the task.
            UnavailableError: the learner refuses this generator.
        """
        _check_answers(lease.task, rollouts)
        completion = _Completion(lease, rollouts)
        self._unanswered[completion] = None
        try:
            async with self._completing:
                while completion.first is None:
                    await asyncio.sleep(0)  # completions of the same turn of the event loop share the request
                    await self._send_completions()
        finally:
            self._unanswered.pop(completion, None)  # of a call that was cancelled
        return completion.first

    async def release(self, leases: Iterable[Lease]) -> None:
        """Releases the leases still owned at once; the delivery does not count."""
        entry_ids = [lease.entry_id for lease in leases]
        self._held.difference_update(entry_ids)
        if entry_ids:
            await self._unless_no_group(self._release, *entry_ids)

    async def leave(self) -> None:
        """Releases all leases, also those that a cancelled `lease` was given, and removes this consumer."""
        self._held.clear()
        while await self._unless_no_group(self._leave, 1000):
            pass

    async def reject(self, entry_id: bytes, fields: Fields, reason: str) -> bool:
        """Turns the entry into a dead letter; False when it is no longer pending."""
        self._held.discard(entry_id)
        task_id = claimed_task_id(fields)
        log.warning("task_rejected", task_id=task_id, entry_id=entry_id.decode(), reason=reason)
        letter = letter_fields("tasks", entry_id, fields, reason)
        keys = [self._keys.tasks, self._keys.open, self._keys.dead_letters]
        return bool(await self._reject(keys, [scripts.GROUP, entry_id, task_id, MAX_DEAD_LETTERS, *letter]))

    async def _send_completions(self) -> None:
        """Sends the oldest completions in one request of about COMPLETE_BYTES, whoever called for them."""
        batch: list[_Completion] = []
        args: list[str | bytes | int] = [scripts.GROUP, self._generator_id]
        room = COMPLETE_BYTES
        for completion in self._unanswered:
            if room <= 0:
                break
            batch.append(completion)
            args += completion.args
            room -= completion.size_bytes
        keys = [self._keys.tasks, self._keys.open, self._keys.rollouts, self._keys.refused]
        try:
            answers = await self._complete(keys, args)
        except ResponseError as error:
            self._raise_if_refused(error)
            raise
        for completion, first in zip(batch, answers, strict=True):
            completion.first = bool(first)
            self._held.discard(completion.entry_id)
            self._unanswered.pop(completion, None)

    async def _take(self, count: int) -> list[_Delivery]:
        """The tasks that are available now, in one round trip."""
        args: list[str | bytes | int] = [
            scripts.GROUP,
            self._generator_id,
            round(self._lease_s * 1000),
            self._cursor,
            count,
        ]
        self._cursor, now, taken = await self._lease([self._keys.tasks, self._keys.counters, self._keys.refused], args)
        return [
            _Delivery(entry_id, deliveries, dict(zip(flat[::2], flat[1::2], strict=True)), _age_s(entry_id, now))
            for entry_id, deliveries, flat in taken
        ]

    async def _wait(self, count: int, wait_s: float) -> list[_Delivery]:
        """Blocks until a new task comes."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.xreadgroup(scripts.GROUP, self._generator_id, {self._keys.tasks: ">"}, count=count, block=block_ms(wait_s))
        pipe.time()
        streams, now = await pipe.execute()
        return [
            _Delivery(entry_id, 1, fields, _age_s(entry_id, now))
            for _, entries in streams
            for entry_id, fields in entries
        ]

    async def _accept(self, deliveries: Iterable[_Delivery]) -> list[Lease]:
        leases = []
        for entry_id, times, fields, queued_s in deliveries:
            if entry_id in self._held:
                continue  # our own lease had expired while we still work on it: claiming it has renewed it
            if times > MAX_DELIVERIES:
                reason = f"delivered {times} times without completion, the limit is {MAX_DELIVERIES}"
                await self.reject(entry_id, fields, reason)
                continue
            try:
                task = decode_task(fields)
            except ContractError as error:
                await self.reject(entry_id, fields, error.message)
                continue
            self._held.add(entry_id)
            leases.append(Lease(entry_id, task, times, queued_s))
        return leases

    async def _unless_no_group(self, script: Any, *args: Any) -> int:
        released = [scripts.GROUP, self._generator_id, scripts.RELEASED, scripts.RELEASED_IDLE_MS, *args]
        try:
            return cast(int, await script([self._keys.tasks], released))
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return 0  # nothing is left to release

    def _raise_if_refused(self, error: ResponseError) -> None:
        if str(error).startswith("REFUSED"):
            raise UnavailableError(
                f"the learner takes no answers of {self._generator_id} for a while: "
                f"{str(error).removeprefix('REFUSED').strip()}",
                hint="this generator's model or engine is not the run's: compare release and settings; its answers are "
                "in the dead letters",
            ) from error

    async def _open_group(self) -> None:
        try:
            await self._client.xgroup_create(self._keys.tasks, scripts.GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        log.warning("task_group_recreated", generator_id=self._generator_id)


class QueueGauge:
    """The services' view of the queue."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys) -> None:
        self._keys = keys
        self._depth = client.register_script(scripts.DEPTH)

    async def read(self) -> QueueDepth:
        """One round trip."""
        keys = [self._keys.tasks, self._keys.rollouts, self._keys.dead_letters, self._keys.counters]
        tasks, pending, released, rollouts, dead, reissued, now, oldest = await self._depth(
            keys, [scripts.GROUP, scripts.RELEASED]
        )
        return QueueDepth(
            tasks_queued=tasks - pending + released,
            tasks_leased=pending - released,
            rollouts_queued=rollouts,
            dead_letters=dead,
            oldest_task_s=_age_s(oldest, now) if oldest else 0.0,
            reissued=reissued,
        )


def _age_s(entry_id: bytes, now: Sequence[Any]) -> float:
    """Age of the entry at `now`, the answer of TIME: (seconds, microseconds)."""
    return max(0.0, int(now[0]) + int(now[1]) / 1e6 - entered_at(entry_id))


def _check_answers(task: Task, rollouts: Sequence[Rollout]) -> None:
    got = [(rollout.task_id, rollout.sample) for rollout in rollouts]
    if sorted(got) != [(task.task_id, sample) for sample in range(task.samples)]:
        raise ContractError(
            f"task {task.task_id} is answered by samples 0 .. {task.samples - 1} of itself, got {got[:8]}",
            hint="complete a task with one rollout per sample",
        )
