"""A generator's life: pull the newest weights, lease tasks, sample, complete; follow every new version in flight.

Three coroutines share one engine and never wait for each other: `_serve` keeps requests in flight and refills per
completion, `_follow` brings new versions, `_beat` renews leases and reports. Knows the learner only by its versions
and its tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

import structlog

from generator import canary
from generator.config import GeneratorConfig
from generator.engine import Completion, Engine
from generator.flow import Flow, Slots
from services.clock import Rate, StateClock
from services.config import DeadlinesConfig, HeartbeatConfig
from services.contracts import Heartbeat, Part, Rollout, WeightManifest
from services.errors import ContractError, DeadlineError, UnavailableError, WeightError
from services.streams.connection import is_cancelled
from services.streams.events import AsyncEventLog
from services.streams.heartbeats import AsyncHeartbeats
from services.streams.tasks import Lease, TaskLeaser
from services.weights.client import WeightClient
from services.weights.mirror import WeightMirror, WeightUpdate

log = structlog.get_logger()

LONG_POLL_S = 20.0
"""How long one question for a newer version stays open at the endpoint."""
LEASE_BLOCK_S = 1.0
"""How long one request for tasks waits at Redis."""
RETRY_S = 1.0
"""Pause before an endpoint that failed is asked again."""
LEAVE_S = 5.0
"""How long signing off may take; leases that could not be given back expire."""
RENEWALS_PER_LEASE = 3.0


class Generator:
    """One engine and the loop around it. `run` returns after a drain; any error ends it and gives the leases back."""

    def __init__(
        self,
        generator_id: str,
        engine: Engine,
        mirror: WeightMirror,
        client: WeightClient,
        leaser: TaskLeaser,
        heartbeats: AsyncHeartbeats,
        events: AsyncEventLog,
        *,
        config: GeneratorConfig,
        deadlines: DeadlinesConfig,
        heartbeat: HeartbeatConfig,
        lease_s: float,
        clock: StateClock,
        chat: Callable[[], AbstractAsyncContextManager[str]] | None = None,
    ) -> None:
        self.generator_id = generator_id
        self._engine = engine
        self._mirror = mirror
        self._client = client
        self._leaser = leaser
        self._heartbeats = heartbeats
        self._events = events
        self._config = config
        self._deadlines = deadlines
        self._heartbeat = heartbeat
        self._lease_s = lease_s
        self._clock = clock
        self._rate = Rate()
        self._held: dict[bytes, Lease] = {}
        self._working: dict[bytes, asyncio.Task[None]] = {}
        self._awaiting: set[asyncio.Task[None]] = set()
        """Those of `_working` that wait for a version and have nothing in the engine."""
        self._unfinished: dict[bytes, int] = {}
        """Sequences that each lease still lacks."""
        self._begun: set[bytes] = set()
        """Leases that have had a slot for their answers; the others wait for one, or for a version."""
        self._samples = 1
        """G of the last task: what the next one will take."""
        self._flow = Flow(config.max_in_flight, fits=config.max_in_flight)
        self._slots = Slots(self._flow.limit)
        self._paused = False
        self._version = -1
        self._digest: str | None = None
        """What the engine serves; the mirror's may differ while an update is on its way."""
        self._unproven: int | None = None
        """The version whose canaries have not been heard yet, from the moment that its first token may be sampled."""
        self._refusals = 0
        """Versions that the engine served otherwise than the learner computes them."""
        self._version_changed = asyncio.Condition()
        self._room = asyncio.Event()
        self._draining = asyncio.Event()
        self._updates, self._pause_ms, self._sync_s, self._sync_bytes = 0, 0.0, 0.0, 0
        self._message = ""
        self._chat: Callable[[], AbstractAsyncContextManager[str]] = chat or (lambda: nullcontext(""))
        self._chat_url = ""

    async def run(self, manifest: WeightManifest) -> None:
        """Serve from `manifest` on until `drain` is called and the work in flight is done."""
        manifest, model_folder = await self._prepare(manifest)
        try:
            await self._engine.start(model_folder, manifest.weight_version)
            await self._prove(manifest)
            self._version, self._digest = manifest.weight_version, manifest.digest
            log.info("engine_started", weight_version=self._version)
            self._flow = Flow(self._config.max_in_flight, self._engine.load().fits)
            self._slots.resize(self._flow.limit)
            self._account()
            async with self._chat() as self._chat_url, asyncio.TaskGroup() as group:
                background = [group.create_task(self._follow()), group.create_task(self._beat())]
                await self._serve(group)
                for task in background:
                    task.cancel()
        finally:
            await self._leave()
            await self._engine.stop()

    async def _prepare(self, manifest: WeightManifest) -> tuple[WeightManifest, Path]:
        """Mirror `manifest`'s version, or a newer one should it be taken back meanwhile, as a folder to start from."""
        started = time.monotonic()
        while True:
            try:
                await self._mirror.advance(manifest)
                return manifest, await self._mirror.model_folder()
            except WeightError as error:
                if time.monotonic() - started >= self._deadlines.startup_s:
                    raise
                log.warning("weights_unavailable", weight_version=manifest.weight_version, error=error.message)
                await asyncio.sleep(RETRY_S)
                manifest = await self._client.latest(None, None, LONG_POLL_S) or manifest

    async def _leave(self) -> None:
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._leaser.release(list(self._held.values()))
                await self._leaser.leave()
                await self._heartbeats.forget(self.generator_id)

    def drain(self) -> None:
        """Take no more tasks; `run` returns when those in flight are done, or after `deadlines.drain_s`."""
        log.info("draining", in_flight=self._slots.held)
        self._draining.set()
        self._room.set()

    # -- tasks -----------------------------------------------------------------------------------------------------

    async def _serve(self, group: asyncio.TaskGroup) -> None:
        while not (self._draining.is_set() or is_cancelled()):
            wanted = self._tasks_wanted()
            if wanted == 0:
                self._room.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._room.wait(), LEASE_BLOCK_S)
                continue
            for lease in await self._lease(wanted):
                self._held[lease.entry_id] = lease
                self._samples = self._unfinished[lease.entry_id] = lease.task.samples
                self._working[lease.entry_id] = group.create_task(self._work(lease))
            self._account()
        await self._finish_in_flight()

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
            return []  # what it had been handed unseen is given back by `leave`
        finally:
            leasing.cancel()
            draining.cancel()

    def _tasks_wanted(self) -> int:
        """Tasks that give the engine all it can take and have a few more wait for the next slots."""
        room = self._flow.room(self._engine.load(), sum(self._unfinished.values()))
        return math.ceil(room / self._samples)

    async def _work(self, lease: Lease) -> None:
        """Sample one task's answers and hand them in; what is not handed in stays held, and `run` gives it back."""
        started = time.monotonic()
        try:
            rollouts = [
                self._rollout(lease, sample, completion, time.monotonic() - started)
                for sample, completion in enumerate(await self._sample(lease))
            ]
            if not await self._leaser.complete(lease, rollouts):
                log.info("twin_ignored", task_id=lease.task.task_id)
            self._held.pop(lease.entry_id, None)
            self._rate.add(sum(int(rollout.response_tokens.size) for rollout in rollouts))
        finally:
            self._working.pop(lease.entry_id, None)
            self._unfinished.pop(lease.entry_id, None)
            self._begun.discard(lease.entry_id)
            self._room.set()
            self._account()

    async def _sample(self, lease: Lease) -> list[Completion]:
        """One completion a sample, from the version that the task asks for on, and from proven versions only.

        Where a learner went back, answers in flight start over at its version; that may be too old for them.
        """
        task = lease.task
        while True:
            self._begun.discard(lease.entry_id)
            await self._reach_version(task.min_weight_version)
            refusals = self._refusals
            self._unfinished[lease.entry_id] = task.samples
            async with asyncio.TaskGroup() as group:
                answers = [group.create_task(self._generate(lease, sample)) for sample in range(task.samples)]
            completions = [answer.result() for answer in answers]
            await self._reach_proof(max(completion.spans[-1].weight_version for completion in completions))
            if refusals == self._refusals and all(
                completion.spans[0].weight_version >= task.min_weight_version for completion in completions
            ):
                return completions

    async def _generate(self, lease: Lease, sample: int) -> Completion:
        """One answer in a slot of its own, whose end makes room for another, however long its siblings take."""
        async with self._slots.one():
            self._begun.add(lease.entry_id)
            self._account()
            completion = await self._engine.generate(lease.task, sample)
        self._unfinished[lease.entry_id] -= 1
        self._flow.observe(self._engine.load())
        self._slots.resize(self._flow.limit)
        self._room.set()
        self._account()
        return completion

    async def _reach_proof(self, version: int) -> None:
        """Wait while `version` is being applied and proven, which both have deadlines of their own."""
        async with self._version_changed:
            await self._version_changed.wait_for(lambda: self._unproven != version)

    def _rollout(self, lease: Lease, sample: int, completion: Completion, generate_s: float) -> Rollout:
        task = lease.task
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
            generator_id=self.generator_id,
            queued_s=lease.queued_s,
            generate_s=generate_s,
            purpose=task.purpose,
        )

    async def _reach_version(self, version: int) -> None:
        """Wait until the engine serves `version` or a later one."""
        if self._version >= version:
            return
        work = asyncio.current_task()
        assert work is not None
        self._awaiting.add(work)
        self._account()
        try:
            async with self._version_changed:
                await asyncio.wait_for(
                    self._version_changed.wait_for(lambda: self._version >= version), self._deadlines.weights_s
                )
        except TimeoutError:
            raise DeadlineError(
                "the weight-sync endpoint",
                f"version {version} (this generator serves {self._version})",
                self._deadlines.weights_s,
                hint="is the learner publishing? `sept status` shows the newest version",
            ) from None
        finally:
            self._awaiting.discard(work)
            self._account()

    async def _finish_in_flight(self) -> None:
        """Give back what has not begun, let the rest end within the drain's deadline, then cancel it."""
        await self._stop([entry_id for entry_id in self._working if entry_id not in self._begun])
        if self._working:
            await asyncio.wait(self._working.values(), timeout=self._deadlines.drain_s)
        await self._stop(list(self._working))

    async def _stop(self, entry_ids: Sequence[bytes]) -> None:
        """End the work on these leases and give back what of it was not handed in meanwhile."""
        for entry_id in entry_ids:
            self._working[entry_id].cancel()
        await asyncio.gather(*(self._working.pop(entry_id) for entry_id in entry_ids), return_exceptions=True)
        held = (self._held.pop(entry_id, None) for entry_id in entry_ids)
        await self._leaser.release([lease for lease in held if lease is not None])

    # -- weights ---------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Bring every new version into the engine: fetched, verified and decoded while it generates."""
        while not is_cancelled():
            try:
                manifest = await self._client.latest(self._version, self._digest, LONG_POLL_S)
                heard = time.monotonic()
                update = await self._mirror.advance(manifest) if manifest is not None else None
            except (UnavailableError, WeightError, ContractError) as error:
                self._message = f"weights: {error.message}"
                log.warning("weights_unavailable", error=error.message)
                await asyncio.sleep(RETRY_S)
                continue
            self._message = ""
            if update is not None:
                await self._serve_version(update, heard)

    async def _serve_version(self, update: WeightUpdate, heard: float) -> None:
        """Lay the update over what the engine serves; failing there ends it, as nobody knows what it serves then."""
        manifest = update.manifest
        self._unproven = manifest.weight_version
        pause_s = await self._engine.apply(update, self._pause)
        pause_s += await self._prove(manifest)
        self._updates += 1
        self._pause_ms, self._sync_s = pause_s * 1e3, time.monotonic() - heard
        self._sync_bytes = update.fetched_bytes
        async with self._version_changed:
            self._version, self._digest, self._unproven = manifest.weight_version, manifest.digest, None
            self._version_changed.notify_all()
        log.info(
            "weights_updated",
            weight_version=self._version,
            pause_ms=round(self._pause_ms, 1),
            sync_s=round(self._sync_s, 3),
            sync_bytes=self._sync_bytes,
        )

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        self._paused = True
        self._account()
        try:
            yield
        finally:
            self._paused = False
            self._account()

    async def _prove(self, manifest: WeightManifest) -> float:
        """Hear the version's canaries from the engine; if they are wrong, reload every tensor once and hear them again.

        Returns the seconds for which generation stood still. WeightError when they are wrong again: what the endpoint
        serves is not what the learner computes with.
        """
        problem = await canary.difference(self._engine, manifest)
        if not problem:
            return 0.0
        self._refusals += 1
        self._message = f"canary: {problem}"
        log.warning("canary_failed", weight_version=manifest.weight_version, reason=problem)
        await self._events.append(
            self.generator_id, "canary_failed", weight_version=manifest.weight_version, message=problem
        )
        pause_s = await self._engine.apply(await self._mirror.renew(manifest), self._pause)
        problem = await canary.difference(self._engine, manifest)
        if problem:
            raise WeightError(
                f"weight version {manifest.weight_version} is not the learner's, reloaded from its snapshot too: "
                f"{problem}",
                hint="what is published differs from what is trained: look for the cause in the learner, or in a type "
                "that this engine computes differently; weight_sync.canary_prompts = 0 turns the check off",
            )
        return pause_s

    # -- leases and heartbeats -------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        renew_every_s = self._lease_s / RENEWALS_PER_LEASE
        renewed = time.monotonic()
        while not is_cancelled():
            await self._heartbeats.send(self._report())
            if time.monotonic() - renewed >= renew_every_s:
                renewed = time.monotonic()
                await self._renew()
            await asyncio.sleep(min(self._heartbeat.every_s, renew_every_s))

    async def _renew(self) -> None:
        """Keep the leases of what is being worked on; stop work whose lease another generator has taken."""
        leases = list(self._held.values())  # what is leased or completed meanwhile is no matter of this renewal
        owned = await self._leaser.renew(leases)
        for lease in leases:
            if lease.entry_id not in owned and self._held.pop(lease.entry_id, None) is not None:
                log.warning("lease_lost", task_id=lease.task.task_id)
                if lease.entry_id in self._working:
                    self._working[lease.entry_id].cancel()

    def _account(self) -> None:
        """Name what the wall time from now on goes to; called whenever one of the facts below has changed."""
        if self._paused:
            self._clock.enter("updating")
        elif self._slots.held:
            self._clock.enter("generating")
        else:
            self._clock.enter("waiting_for_weights" if self._awaiting else "waiting_for_tasks")

    def _report(self) -> Heartbeat:
        return Heartbeat(
            part=Part.GENERATOR,
            part_id=self.generator_id,
            state=self._clock.state,
            shares=self._clock.shares(),
            weight_version=self._version,
            weight_digest=self._digest,
            in_flight=self._slots.held,
            tokens_per_s=self._rate.per_s(),
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self._engine.device,
            message=self._message,
            updates=self._updates,
            pause_ms=self._pause_ms,
            sync_s=self._sync_s,
            sync_bytes=self._sync_bytes,
            chat_url=self._chat_url,
        )
