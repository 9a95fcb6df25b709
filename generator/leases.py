"""A generator's leases: taken as the engine has room, answered, handed in. Knows weights by their version only.

Each lease is one record in one dict, from the moment it is taken until its answers are handed in, it is given back or
another generator has it; whatever is asked about the leases is read off these records.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import structlog

from generator.engines.base import Completion, Engine
from generator.flow import Flow, Slots
from generator.versions import Versions
from services.config import DeadlinesConfig
from services.contracts import Rollout
from services.streams.connection import is_cancelled
from services.streams.tasks import Lease, TaskLeaser
from services.time_accounting import Rate

log = structlog.get_logger()

LEASE_BLOCK_S = 1.0
"""How long one request for tasks waits at Redis."""


class Stage(Enum):
    """How far the work on a lease is."""

    AWAITING_SLOT = auto()
    AWAITING_VERSION = auto()
    """It has nothing in the engine, and will not before another version comes."""
    BEGUN = auto()
    """One of its sequences at least has had a slot."""


@dataclass(slots=True, eq=False)
class Held:
    """A lease in this generator's hands."""

    lease: Lease
    lacking: int
    """Sequences that it still lacks."""
    stage: Stage = Stage.AWAITING_SLOT
    since: float = field(default_factory=time.monotonic)
    """When it was taken, on the monotonic clock."""
    work: asyncio.Task[None] = field(init=False)

    def start_over(self) -> None:
        """Nothing that was sampled so far counts."""
        self.lacking, self.stage = self.lease.task.samples, Stage.AWAITING_SLOT


class Leases:
    """What one generator holds, and the work on it.

    `changed` is called whenever `in_flight` or `awaits_version` may have changed.
    """

    def __init__(
        self,
        generator_id: str,
        engine: Engine,
        versions: Versions,
        leaser: TaskLeaser,
        max_in_flight: int,
        deadlines: DeadlinesConfig,
        changed: Callable[[], None],
    ) -> None:
        self._generator_id = generator_id
        self._engine = engine
        self._versions = versions
        self._leaser = leaser
        self._max_in_flight = max_in_flight
        self._deadlines = deadlines
        self._changed = changed
        self._held: dict[bytes, Held] = {}
        """By the lease's entry id."""
        self._samples = 1
        """G of the last task: what the next one will take."""
        self._flow = Flow(max_in_flight, fits=max_in_flight)
        self._slots = Slots(self._flow.limit)
        self._room = asyncio.Event()
        self._draining = asyncio.Event()
        self.rate = Rate()
        """Of tokens handed in."""

    @property
    def in_flight(self) -> int:
        """Sequences in the engine."""
        return self._slots.held

    @property
    def awaits_version(self) -> bool:
        """Whether a lease waits for a version that the engine does not serve yet."""
        return any(held.stage is Stage.AWAITING_VERSION for held in self._held.values())

    async def serve(self, group: asyncio.TaskGroup) -> None:
        """Keep the started engine in work until `drain`, then let end what has begun; work is done in `group`."""
        self._flow = Flow(self._max_in_flight, self._engine.load().fits)
        self._slots.resize(self._flow.limit)
        while not (self._draining.is_set() or is_cancelled()):
            wanted = self._tasks_wanted()
            if wanted == 0:
                self._room.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._room.wait(), LEASE_BLOCK_S)
                continue
            for lease in await self._take(wanted):
                self._samples = lease.task.samples
                self._held[lease.entry_id] = held = Held(lease, lacking=lease.task.samples)
                held.work = group.create_task(self._work(held))
            self._changed()
        await self._finish_in_flight()

    def drain(self) -> None:
        """Take no more; `serve` returns when what has begun is done, or after `deadlines.drain_s`."""
        self._draining.set()
        self._room.set()

    async def renew(self) -> None:
        """Keep the leases of what is being worked on; stop work whose lease another generator has taken."""
        known = list(self._held.values())  # what is taken or handed in meanwhile is no matter of this renewal
        owned = await self._leaser.renew([held.lease for held in known])
        for held in known:
            if held.lease.entry_id not in owned and self._let_go(held):
                log.warning("lease_lost", task_id=held.lease.task.task_id)
                held.work.cancel()

    # -- taking and giving back ------------------------------------------------------------------------------------

    def _tasks_wanted(self) -> int:
        """Tasks that give the engine all it can take and have a few more wait for the next slots."""
        outstanding = sum(held.lacking for held in self._held.values())
        return math.ceil(self._flow.room(self._engine.load(), outstanding) / self._samples)

    async def _take(self, count: int) -> list[Lease]:
        """Up to `count` tasks; none once drained, however long Redis takes to answer."""
        leasing = asyncio.ensure_future(self._leaser.lease(count, LEASE_BLOCK_S))
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((leasing, draining), return_when=asyncio.FIRST_COMPLETED)
            if leasing.done():
                return leasing.result()
            leasing.cancel()
            await asyncio.wait((leasing,))
            return []  # what it had been handed unseen is given back when the leaser signs off
        finally:
            leasing.cancel()
            draining.cancel()

    def _let_go(self, held: Held) -> bool:
        """Hold it no more; False when that was so already, even if its task has come again."""
        if self._held.get(held.lease.entry_id) is not held:
            return False
        del self._held[held.lease.entry_id]
        return True

    async def _finish_in_flight(self) -> None:
        """Give back what has not begun, let the rest end within the drain's deadline, then cancel it."""
        await self._stop([held for held in self._held.values() if held.stage is not Stage.BEGUN])
        if self._held:
            await asyncio.wait([held.work for held in self._held.values()], timeout=self._deadlines.drain_s)
        await self._stop(list(self._held.values()))

    async def _stop(self, stopped: Sequence[Held]) -> None:
        """End the work on these and give back what of it was not handed in meanwhile."""
        for held in stopped:
            held.work.cancel()
        await asyncio.gather(*(held.work for held in stopped), return_exceptions=True)
        await self._leaser.release([held.lease for held in stopped if self._let_go(held)])

    # -- the work on one -------------------------------------------------------------------------------------------

    async def _work(self, held: Held) -> None:
        """Sample the task's answers and hand them in; what is not handed in stays held until it is given back."""
        try:
            completions = await self._sample(held)
            rollouts = [self._rollout(held, *answer) for answer in enumerate(completions)]
            if not await self._leaser.complete(held.lease, rollouts):
                log.info("twin_ignored", task_id=held.lease.task.task_id)
            self._let_go(held)
            self.rate.add(sum(int(rollout.response_tokens.size) for rollout in rollouts))
        finally:
            self._room.set()
            self._changed()

    async def _sample(self, held: Held) -> list[Completion]:
        """One completion a sample, from the version that the task asks for on, and from proven versions only.

        Where a learner went back, answers in flight start over at its version; that may be too old for them.
        """
        task, versions = held.lease.task, self._versions
        while True:
            held.start_over()
            await self._reach_version(held)
            refusals = versions.refusals
            async with asyncio.TaskGroup() as group:
                answers = [group.create_task(self._generate(held, sample)) for sample in range(task.samples)]
            completions = [answer.result() for answer in answers]
            await versions.proof(max(completion.spans[-1].weight_version for completion in completions))
            if refusals == versions.refusals and all(
                completion.spans[0].weight_version >= task.min_weight_version for completion in completions
            ):
                return completions

    async def _reach_version(self, held: Held) -> None:
        version = held.lease.task.min_weight_version
        if self._versions.served >= version:
            return
        held.stage = Stage.AWAITING_VERSION
        self._changed()
        try:
            await self._versions.reach(version)
        finally:
            held.stage = Stage.AWAITING_SLOT
            self._changed()

    async def _generate(self, held: Held, sample: int) -> Completion:
        """One answer in a slot of its own, whose end makes room for another, however long its siblings take."""
        async with self._slots.one():
            held.stage = Stage.BEGUN
            self._changed()
            completion = await self._engine.generate(held.lease.task, sample)
        held.lacking -= 1
        self._flow.observe(self._engine.load())
        self._slots.resize(self._flow.limit)
        self._room.set()
        self._changed()
        return completion

    def _rollout(self, held: Held, sample: int, completion: Completion) -> Rollout:
        task = held.lease.task
        return Rollout(
            task_id=task.task_id,
            sample=sample,
            round=task.round,
            index=task.index,
            prompt_tokens=task.prompt_tokens,
            response_tokens=completion.response_tokens,
            finish_reason=completion.finish_reason,
            temperature=task.temperature,
            spans=completion.spans,
            generator_id=self._generator_id,
            queued_s=held.lease.queued_s,
            generate_s=time.monotonic() - held.since,
            purpose=task.purpose,
        )
