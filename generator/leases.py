"""A generator's leases: taken as the engine has room, sampled, completed with their rollouts or released.

Each lease is one record in one dict, from the moment it is taken until it is completed, released or lost to another
generator. All numbers about the leases are computed from these records.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Sequence
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

LOST_MEANS = (
    "this generator was late to renew them, or their round is given up: another one does them, no answer is lost"
)

log = structlog.get_logger()

LEASE_BLOCK_S = 1.0
"""How long one request for tasks blocks at Redis."""


class Stage(Enum):
    """How far the work on a lease is."""

    AWAITING_SLOT = auto()
    AWAITING_VERSION = auto()
    """None of its sequences is in the engine, because its task needs a newer version."""
    SAMPLING = auto()
    """At least one of its sequences has had a slot."""


class ActiveLease:
    """A lease that this generator holds, and `work`, which runs in `group`."""

    def __init__(
        self, lease: Lease, work: Callable[[ActiveLease], Coroutine[None, None, None]], group: asyncio.TaskGroup
    ) -> None:
        self.lease = lease
        self.unfinished = lease.task.samples
        """Sequences without a completion."""
        self.stage = Stage.AWAITING_SLOT
        self.taken_at = time.monotonic()
        self.work = group.create_task(work(self))

    def start_over(self) -> None:
        """Discard what was sampled so far."""
        self.unfinished, self.stage = self.lease.task.samples, Stage.AWAITING_SLOT

    def enter(self, stage: Stage) -> None:
        self.stage = stage

    def finish_sequence(self) -> None:
        self.unfinished -= 1


class Leases:
    """The leases of one generator, and the work on them.

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
        self._active: dict[bytes, ActiveLease] = {}
        """By the lease's entry id."""
        self._samples = 1
        """G of the last task; the next one is assumed to have as many samples."""
        self._flow = Flow(max_in_flight, fits=max_in_flight)
        self._slots = Slots(self._flow.limit)
        self._work_ended = asyncio.Event()
        self._draining = asyncio.Event()
        self.rate = Rate()
        """Tokens of completed tasks."""

    @property
    def in_flight(self) -> int:
        """Sequences in the engine."""
        return self._slots.held

    @property
    def awaits_version(self) -> bool:
        """Whether a lease waits for a version that the engine does not serve yet."""
        return any(active.stage is Stage.AWAITING_VERSION for active in self._active.values())

    async def serve(self, group: asyncio.TaskGroup) -> None:
        """Keep the started engine busy until `drain`, then finish what is being sampled; the work runs in `group`."""
        self._flow = Flow(self._max_in_flight, self._engine.load().fits)
        self._slots.resize(self._flow.limit)
        while not (self._draining.is_set() or is_cancelled()):
            count = self._tasks_to_lease()
            if count == 0:
                self._work_ended.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._work_ended.wait(), LEASE_BLOCK_S)
                continue
            for lease in await self._lease(count):
                self._samples = lease.task.samples
                self._active[lease.entry_id] = ActiveLease(lease, self._work, group)
            self._changed()
        await self._finish_in_flight()

    def drain(self) -> None:
        """Lease no more; `serve` returns when what is being sampled is done, or after `deadlines.drain_s`."""
        self._draining.set()
        self._work_ended.set()

    async def renew(self) -> None:
        """Renew the leases; stop work whose lease another generator has taken."""
        renewed = list(self._active.values())  # others may be added or completed during the request
        owned = await self._leaser.renew([active.lease for active in renewed])
        lost = [active for active in renewed if active.lease.entry_id not in owned and self._remove(active)]
        for active in lost:
            active.work.cancel()
        if lost:
            log.warning("leases_lost", tasks=len(lost), first=lost[0].lease.task.task_id, meaning=LOST_MEANS)

    # -- leasing and releasing -------------------------------------------------------------------------------------

    def _tasks_to_lease(self) -> int:
        """Tasks that fill the engine and a few more, which wait for the next slots."""
        outstanding = sum(active.unfinished for active in self._active.values())
        return math.ceil(self._flow.fetchable(self._engine.load(), outstanding) / self._samples)

    async def _lease(self, count: int) -> list[Lease]:
        """Up to `count` tasks; none once drained, however long Redis takes to answer."""
        leasing = asyncio.ensure_future(self._leaser.lease(count, LEASE_BLOCK_S))
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((leasing, draining), return_when=asyncio.FIRST_COMPLETED)
            if leasing.done():
                return leasing.result()
            leasing.cancel()
            await asyncio.wait((leasing,))
            return []  # what Redis leased to the cancelled request is released when the leaser leaves
        finally:
            leasing.cancel()
            draining.cancel()

    def _remove(self, active: ActiveLease) -> bool:
        """Hold the lease no more; False when it was removed before, even if its task was leased again since."""
        if self._active.get(active.lease.entry_id) is not active:
            return False
        del self._active[active.lease.entry_id]
        return True

    async def _finish_in_flight(self) -> None:
        """Release what is not being sampled, wait for the rest until the drain's deadline, then stop it."""
        await self._stop([active for active in self._active.values() if active.stage is not Stage.SAMPLING])
        if self._active:
            await asyncio.wait([active.work for active in self._active.values()], timeout=self._deadlines.drain_s)
        await self._stop(list(self._active.values()))

    async def _stop(self, stopped: Sequence[ActiveLease]) -> None:
        """Cancel the work on these and release those that were not completed meanwhile."""
        for active in stopped:
            active.work.cancel()
        await asyncio.gather(*(active.work for active in stopped), return_exceptions=True)
        await self._leaser.release([active.lease for active in stopped if self._remove(active)])

    # -- the work on one lease -------------------------------------------------------------------------------------

    async def _work(self, active: ActiveLease) -> None:
        """Sample the task's responses and complete the lease; after an error it stays active until it is released."""
        try:
            completions = await self._sample(active)
            rollouts = [self._rollout(active, *numbered) for numbered in enumerate(completions)]
            if not await self._leaser.complete(active.lease, rollouts):
                log.info("twin_ignored", task_id=active.lease.task.task_id)
            self._remove(active)
            self.rate.add(sum(int(rollout.response_tokens.size) for rollout in rollouts))
        finally:
            self._work_ended.set()
            self._changed()

    async def _sample(self, active: ActiveLease) -> list[Completion]:
        """One completion for each sample, by versions that are verified and at least as new as the task demands.

        After a rollback of the learner, requests in flight start over at its version, which may be too old for them.
        """
        task, versions = active.lease.task, self._versions
        while True:
            active.start_over()
            await self._await_version(active)
            failures = versions.canary_failures
            async with asyncio.TaskGroup() as group:
                requests = [group.create_task(self._generate(active, sample)) for sample in range(task.samples)]
            completions = [request.result() for request in requests]
            newest = max(completion.spans[-1].weight_version for completion in completions)
            await versions.wait_until_verified(newest)
            if failures == versions.canary_failures and all(
                completion.spans[0].weight_version >= task.min_weight_version for completion in completions
            ):
                return completions

    async def _await_version(self, active: ActiveLease) -> None:
        version = active.lease.task.min_weight_version
        if self._versions.served >= version:
            return
        active.enter(Stage.AWAITING_VERSION)
        self._changed()
        try:
            await self._versions.wait_until_served(version)
        finally:
            active.enter(Stage.AWAITING_SLOT)
            self._changed()

    async def _generate(self, active: ActiveLease, sample: int) -> Completion:
        """One response in a slot of its own, which is free for others as soon as this response ends."""
        async with self._slots.acquired():
            active.enter(Stage.SAMPLING)
            self._changed()
            completion = await self._engine.generate(active.lease.task, sample)
        active.finish_sequence()
        self._flow.observe(self._engine.load())
        self._slots.resize(self._flow.limit)
        self._work_ended.set()
        self._changed()
        return completion

    def _rollout(self, active: ActiveLease, sample: int, completion: Completion) -> Rollout:
        task = active.lease.task
        return Rollout(
            task_id=task.task_id,
            sample=sample,
            round=task.round,
            position=task.position,
            prompt_tokens=task.prompt_tokens,
            response_tokens=completion.response_tokens,
            finish_reason=completion.finish_reason,
            temperature=task.temperature,
            top_p=task.top_p,
            top_k=task.top_k,
            min_p=task.min_p,
            spans=tuple(
                span.model_copy(update={"weight_digest": self._versions.digest_of(span.weight_version)})
                for span in completion.spans
            ),
            generator_id=self._generator_id,
            queued_s=active.lease.queued_s,
            generate_s=time.monotonic() - active.taken_at,
            purpose=task.purpose,
        )
