"""Runs one engine: leases tasks, follows new weight versions and sends heartbeats, concurrently.

The way of one task through the generator:
    run.py      run_generator     creates the engine and this loop, then calls Generator.run
    loop.py     Generator.run     starts Leases.serve, Versions.follow and _send_heartbeats as three coroutines
    leases.py   Leases.serve      leases as many tasks as Flow.fetchable allows, and starts _work on each
    leases.py   Leases._work      waits for the task's version and for slots, then for Engine.generate of each sample
    engines/    Engine.generate   returns a Completion: the tokens, and the spans of the versions that sampled them
    leases.py   Leases._work      waits until these versions are verified, then completes the lease with its rollouts
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import asdict

import structlog

from generator.config import GeneratorConfig
from generator.engines.base import Engine
from generator.leases import Leases
from generator.versions import Versions
from services.config import DeadlinesConfig
from services.contracts import Heartbeat, Part, WeightManifest
from services.errors import UnavailableError
from services.streams.connection import is_cancelled
from services.streams.events import AsyncEventLog
from services.streams.heartbeats import HEARTBEAT_EVERY_S, AsyncHeartbeats
from services.streams.tasks import TaskLeaser
from services.time_accounting import StateClock
from services.weights.client import WeightClient
from services.weights.mirror import WeightMirror

log = structlog.get_logger()

SIGN_OFF_S = 5.0
"""Longest wait for Redis when the generator ends; leases that could not be released expire."""
RENEWALS_PER_LEASE = 3.0


class Generator:
    """One engine and the loop around it. `run` returns after a drain; any error ends it and releases the leases."""

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
        lease_s: float,
        clock: StateClock,
        heartbeat_every_s: float = HEARTBEAT_EVERY_S,
        chat: Callable[[], AbstractAsyncContextManager[str]] | None = None,
    ) -> None:
        self.generator_id = generator_id
        self._engine = engine
        self._leaser = leaser
        self._heartbeats = heartbeats
        self._heartbeat_every_s = heartbeat_every_s
        self._lease_s = lease_s
        self._clock = clock
        self._chat: Callable[[], AbstractAsyncContextManager[str]] = chat or (lambda: nullcontext(""))
        self._chat_url = ""
        self._versions = Versions(generator_id, engine, mirror, client, events, deadlines, self._update_clock)
        self._leases = Leases(
            generator_id, engine, self._versions, leaser, config.max_in_flight, deadlines, self._update_clock
        )

    async def run(self, manifest: WeightManifest) -> None:
        """Start with `manifest`'s version; return when `drain` was called and the work in flight is done."""
        try:
            await self._versions.start(manifest)
            self._update_clock()
            async with self._chat() as self._chat_url, asyncio.TaskGroup() as group:
                background = [group.create_task(self._versions.follow()), group.create_task(self._send_heartbeats())]
                await self._leases.serve(group)
                for task in background:
                    task.cancel()
        finally:
            await self._sign_off()
            await self._engine.stop()

    def drain(self) -> None:
        """Lease no more tasks; `run` returns when those in flight are done, or after `deadlines.drain_s`."""
        log.info("draining", in_flight=self._leases.in_flight)
        self._leases.drain()

    async def _sign_off(self) -> None:
        """Release every lease and remove the heartbeat."""
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(SIGN_OFF_S):
                await self._leaser.leave()
                await self._heartbeats.forget(self.generator_id)

    async def _send_heartbeats(self) -> None:
        renew_every_s = self._lease_s / RENEWALS_PER_LEASE
        renewed = time.monotonic()
        while not is_cancelled():
            await self._heartbeats.send(self._heartbeat_now())
            if time.monotonic() - renewed >= renew_every_s:
                renewed = time.monotonic()
                await self._leases.renew()
            await asyncio.sleep(min(self._heartbeat_every_s, renew_every_s))

    def _update_clock(self) -> None:
        """Set the state that the wall time counts for; called whenever one of the conditions below has changed."""
        if self._versions.updating:
            self._clock.enter("updating")
        elif self._leases.in_flight:
            self._clock.enter("generating")
        else:
            self._clock.enter("waiting_for_weights" if self._leases.awaits_version else "waiting_for_tasks")

    def _heartbeat_now(self) -> Heartbeat:
        return Heartbeat(
            part=Part.GENERATOR,
            part_id=self.generator_id,
            state=self._clock.state,
            shares=self._clock.shares(),
            weight_version=self._versions.served,
            weight_digest=self._versions.digest,
            in_flight=self._leases.in_flight,
            tokens_per_s=self._leases.rate.per_s(),
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self._engine.device,
            message=self._versions.message,
            **asdict(self._versions.costs),
            chat_url=self._chat_url,
        )
