"""The weights that the engine serves: brought in while it generates, proven by their canaries, waited for by tasks.

Owns the mirror and the engine's updates. Knows no task and no lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from generator import canary
from generator.engines.base import Engine
from services.config import DeadlinesConfig
from services.contracts import WeightManifest
from services.errors import ContractError, DeadlineError, UnavailableError, WeightError
from services.streams.connection import is_cancelled
from services.streams.events import AsyncEventLog
from services.weights.client import WeightClient
from services.weights.mirror import WeightMirror, WeightUpdate

log = structlog.get_logger()

LONG_POLL_S = 20.0
"""How long one question for a newer version stays open at the endpoint."""
RETRY_S = 1.0
"""Pause before an endpoint that failed is asked again."""


async def first_version(client: WeightClient, deadline_s: float) -> WeightManifest:
    """Wait for the learner's first publication; DeadlineError when none comes."""
    started = time.monotonic()
    problem = "no version was published"
    while (waited := time.monotonic() - started) < deadline_s:
        try:
            manifest = await client.latest(None, None, min(LONG_POLL_S, deadline_s - waited))
        except UnavailableError as error:
            problem = error.message
            await asyncio.sleep(RETRY_S)
        else:
            if manifest is not None:
                return manifest
    raise DeadlineError(
        "the weight-sync endpoint",
        f"the first version ({problem})",
        deadline_s,
        hint="start the services and the learner, or raise deadlines.startup_s",
    )


@dataclass(frozen=True, slots=True)
class UpdateCosts:
    """The fields of Heartbeat that say how many updates there were, and what the last one took."""

    updates: int = 0
    pause_ms: float = 0.0
    sync_s: float = 0.0
    sync_bytes: int = 0


class Versions:
    """What `engine` serves from `start` on; `follow` brings every later version.

    `changed` is called whenever `updating` has changed.
    """

    def __init__(
        self,
        generator_id: str,
        engine: Engine,
        mirror: WeightMirror,
        client: WeightClient,
        events: AsyncEventLog,
        deadlines: DeadlinesConfig,
        changed: Callable[[], None],
    ) -> None:
        self._generator_id = generator_id
        self._engine = engine
        self._mirror = mirror
        self._client = client
        self._events = events
        self._deadlines = deadlines
        self._changed = changed
        self.served = -1
        self.digest: str | None = None
        """Of what the engine serves; the mirror's may differ while an update is on its way."""
        self.refusals = 0
        """Versions that the engine served otherwise than the learner computes them."""
        self.updating = False
        """Whether generation stands still for an update."""
        self.costs = UpdateCosts()
        self.message = ""
        """What is amiss with the newest version, for people."""
        self._unproven: int | None = None
        """The version whose canaries have not been heard yet, from the moment that its first token may be sampled."""
        self._arrived = asyncio.Condition()

    async def start(self, manifest: WeightManifest) -> None:
        """Start the engine with `manifest`'s version, or with a newer one should it be taken back meanwhile."""
        manifest, model_folder = await self._fetch(manifest)
        await self._engine.start(model_folder, manifest.weight_version)
        await self._prove(manifest)
        self.served, self.digest = manifest.weight_version, manifest.digest
        log.info("engine_started", weight_version=self.served)

    async def follow(self) -> None:
        """Bring every new version into the engine: fetched, verified and decoded while it generates."""
        while not is_cancelled():
            try:
                manifest = await self._client.latest(self.served, self.digest, LONG_POLL_S)
                heard = time.monotonic()
                update = await self._mirror.advance(manifest) if manifest is not None else None
            except (UnavailableError, WeightError, ContractError) as error:
                self.message = f"weights: {error.message}"
                log.warning("weights_unavailable", error=error.message)
                await asyncio.sleep(RETRY_S)
                continue
            self.message = ""
            if update is not None:
                await self._serve(update, heard)

    async def reach(self, version: int) -> None:
        """Wait until the engine serves `version` or a later one; DeadlineError after `deadlines.weights_s`."""
        try:
            async with self._arrived:
                await asyncio.wait_for(
                    self._arrived.wait_for(lambda: self.served >= version), self._deadlines.weights_s
                )
        except TimeoutError:
            raise DeadlineError(
                "the weight-sync endpoint",
                f"version {version} (this generator serves {self.served})",
                self._deadlines.weights_s,
                hint="is the learner publishing? `sept status` shows the newest version",
            ) from None

    async def proof(self, version: int) -> None:
        """Wait while `version` is being applied and proven, which both have deadlines of their own."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: self._unproven != version)

    async def _fetch(self, manifest: WeightManifest) -> tuple[WeightManifest, Path]:
        """The version as a folder to start from."""
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

    async def _serve(self, update: WeightUpdate, heard: float) -> None:
        """Lay the update over what the engine serves; failing there ends it, as nobody knows what it serves then."""
        manifest = update.manifest
        self._unproven = manifest.weight_version
        pause_s = await self._engine.apply(update, self._pause)
        pause_s += await self._prove(manifest)
        sync_s = time.monotonic() - heard
        self.costs = UpdateCosts(self.costs.updates + 1, pause_s * 1e3, sync_s, update.fetched_bytes)
        async with self._arrived:
            self.served, self.digest, self._unproven = manifest.weight_version, manifest.digest, None
            self._arrived.notify_all()
        log.info(
            "weights_updated",
            weight_version=self.served,
            pause_ms=round(pause_s * 1e3, 1),
            sync_s=round(sync_s, 3),
            sync_bytes=update.fetched_bytes,
        )

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        self.updating = True
        self._changed()
        try:
            yield
        finally:
            self.updating = False
            self._changed()

    async def _prove(self, manifest: WeightManifest) -> float:
        """Hear the version's canaries from the engine; if they are wrong, reload every tensor once and hear them again.

        Returns the seconds for which generation stood still. WeightError when they are wrong again: what the endpoint
        serves is not what the learner computes with.
        """
        problem = await canary.difference(self._engine, manifest)
        if not problem:
            return 0.0
        self.refusals += 1
        self.message = f"canary: {problem}"
        log.warning("canary_failed", weight_version=manifest.weight_version, reason=problem)
        await self._events.append(
            self._generator_id, "canary_failed", weight_version=manifest.weight_version, message=problem
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
