"""Keeps the engine at the newest weights: fetched while it generates, checked by their canaries, awaited by tasks.

Owns the weight mirror and the engine's updates.
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
from services.errors import ContractError, DeadlineError, ModelError, SeptError, UnavailableError, WeightError
from services.http_client import OtherRunError
from services.streams.connection import is_cancelled
from services.streams.events import AsyncEventLog
from services.weights.client import WeightClient
from services.weights.mirror import WeightMirror, WeightUpdate

log = structlog.get_logger()

LONG_POLL_S = 20.0
"""How long one request for a newer version stays open at the endpoint."""
RETRY_S = 1.0
"""Pause before a failed request to the endpoint is repeated."""
REPORT_EVERY_S = 10.0
"""Pause between two reports of versions that cannot be built."""


async def wait_for_first_version(client: WeightClient, deadline_s: float) -> WeightManifest:
    """Wait for the learner's first publication; DeadlineError when none comes, OtherRunError of another run."""
    started = time.monotonic()
    reason = "no version was published"
    while (waited := time.monotonic() - started) < deadline_s:
        try:
            manifest = await client.latest(None, None, min(LONG_POLL_S, deadline_s - waited))
        except OtherRunError:
            raise
        except (UnavailableError, WeightError) as error:  # WeightError: the learner makes a damaged version again
            reason = error.message
            await asyncio.sleep(RETRY_S)
        else:
            if manifest is not None:
                return manifest
    raise DeadlineError(
        "the weight-sync endpoint",
        f"the first version ({reason})",
        deadline_s,
        hint="start the services and the learner, or raise deadlines.startup_s",
    )


@dataclass(frozen=True, slots=True)
class UpdateCosts:
    """The fields of Heartbeat that count the updates and measure the last one."""

    updates: int = 0
    pause_ms: float = 0.0
    sync_s: float = 0.0
    sync_bytes: int = 0
    line_bytes_per_s: float = 0.0


class Versions:
    """The version that `engine` serves: `start` loads the first one, `follow` applies every later one.

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
        """Digest of the version served; the mirror may be at another one while an update is being applied."""
        self._digests: dict[int, str] = {}
        """Of every version that was served, by its number; of one that was published again, the newest."""
        self.canary_failures = 0
        """Versions for which the engine computed something else than the learner."""
        self.updating = False
        """Whether generation is paused for an update."""
        self.costs = UpdateCosts()
        self.message = ""
        """Why the newest version is not served, for display."""
        self._unverified: int | None = None
        """The version whose canaries are not checked yet, from the moment that its first token may be sampled."""
        self._version_served = asyncio.Condition()
        self._reported = -REPORT_EVERY_S

    async def start(self, manifest: WeightManifest) -> None:
        """Start the engine with `manifest`'s version, or with the newest if that one is retracted meanwhile."""
        manifest, model_folder = await self._fetch(manifest)
        self.costs = UpdateCosts(line_bytes_per_s=self._client.line_bytes_per_s)
        await self._engine.start(model_folder, manifest.weight_version)
        if mismatch := await canary.describe_mismatch(self._engine, manifest):
            await self._note_mismatch(manifest, mismatch)
            raise ModelError(
                f"the engine computes another function than the learner with the weights of version "
                f"{manifest.weight_version}, freshly loaded: {mismatch}",
                hint="they differ in a layer, in positions beyond a length, or in the rounding of the engine's type "
                "(try generator.dtype = float32); train a model that both compute alike",
            )
        self._note_served(manifest)
        log.info("engine_started", weight_version=self.served)

    async def follow(self) -> None:
        """Apply every new version; it is fetched, verified and decoded while the engine generates."""
        while not is_cancelled():
            async with contextlib.AsyncExitStack() as reading:
                try:
                    manifest = await self._client.latest(self.served, self.digest, LONG_POLL_S)
                    announced = time.monotonic()
                    update = None
                    if manifest is not None:
                        update = await reading.enter_async_context(self._mirror.advance(manifest))
                except (UnavailableError, WeightError, ContractError) as error:
                    self.message = f"weights: {error.message}"
                    log.warning("weights_unavailable", error=error.message)
                    await self._report_damage(error)
                    await asyncio.sleep(RETRY_S)
                    continue
                self.message = ""
                if update is None:
                    continue
                self._unverified = update.manifest.weight_version
                # an error from here on ends the generator, because the engine's weights are undefined then
                pause_s = await self._engine.apply(update, self._paused)
            await self._serve(update, pause_s, announced)

    async def wait_until_served(self, version: int) -> None:
        """Wait until the engine serves `version` or a later one; DeadlineError after `deadlines.weights_s`."""
        try:
            async with self._version_served:
                await asyncio.wait_for(
                    self._version_served.wait_for(lambda: self.served >= version), self._deadlines.weights_s
                )
        except TimeoutError:
            raise DeadlineError(
                "the weight-sync endpoint",
                f"version {version} (this generator serves {self.served})",
                self._deadlines.weights_s,
                hint="is the learner publishing? `sept status` shows the newest version",
            ) from None

    async def wait_until_verified(self, version: int) -> None:
        """Wait while `version` is being applied and its canaries are checked; both have deadlines of their own."""
        async with self._version_served:
            await self._version_served.wait_for(lambda: self._unverified != version)

    async def _fetch(self, manifest: WeightManifest) -> tuple[WeightManifest, Path]:
        """A version on disk and its model folder; the newest if `manifest`'s cannot be fetched."""
        started = time.monotonic()
        while True:
            try:
                return await self._mirror.model_folder(manifest)
            except WeightError as error:
                if time.monotonic() - started >= self._deadlines.startup_s:
                    raise
                log.warning("weights_unavailable", weight_version=manifest.weight_version, error=error.message)
                await self._report_damage(error)
                await asyncio.sleep(RETRY_S)
                with contextlib.suppress(WeightError):  # the newest manifest may be what is damaged
                    manifest = await self._client.latest(None, None, LONG_POLL_S) or manifest

    async def _serve(self, update: WeightUpdate, pause_s: float, announced: float) -> None:
        """Check the version that was applied, and let tasks have it."""
        manifest = update.manifest
        pause_s += await self._check_canaries(manifest)
        sync_s = time.monotonic() - announced
        line = self._client.line_bytes_per_s
        self.costs = UpdateCosts(self.costs.updates + 1, pause_s * 1e3, sync_s, update.fetched_bytes, line)
        async with self._version_served:
            self._note_served(manifest)
            self._unverified = None
            self._version_served.notify_all()
        log.info(
            "weights_updated",
            weight_version=self.served,
            pause_ms=round(pause_s * 1e3, 1),
            sync_s=round(sync_s, 3),
            sync_bytes=update.fetched_bytes,
        )

    async def _report_damage(self, error: SeptError) -> None:
        """Tell the learner, which then looks at its store; not more often than it takes to make a version again."""
        if not isinstance(error, WeightError) or time.monotonic() < self._reported + REPORT_EVERY_S:
            return
        self._reported = time.monotonic()
        await self._events.append(self._generator_id, "version_damaged", reason=error.message)

    def digest_of(self, version: int) -> str | None:
        """The digest of a version that was served."""
        return self._digests.get(version)

    def _note_served(self, manifest: WeightManifest) -> None:
        self.served, self.digest = manifest.weight_version, manifest.digest
        self._digests[manifest.weight_version] = manifest.digest

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        self.updating = True
        self._changed()
        try:
            yield
        finally:
            self.updating = False
            self._changed()

    async def _check_canaries(self, manifest: WeightManifest) -> float:
        """Compare the engine with the version's canaries; if they differ, reload every tensor once and compare again.

        Returns the seconds for which generation was paused. WeightError when they differ again: what the endpoint
        serves is not what the learner computes with.
        """
        mismatch = await canary.describe_mismatch(self._engine, manifest)
        if not mismatch:
            return 0.0
        await self._note_mismatch(manifest, mismatch)
        async with self._mirror.renew(manifest) as update:
            pause_s = await self._engine.apply(update, self._paused)
        mismatch = await canary.describe_mismatch(self._engine, manifest)
        if mismatch:
            raise WeightError(
                f"weight version {manifest.weight_version} is not the learner's, reloaded from its snapshot too: "
                f"{mismatch}",
                hint="what is published differs from what is trained: look for the cause in the learner, or in a type "
                "that this engine computes differently",
            )
        return pause_s

    async def _note_mismatch(self, manifest: WeightManifest, mismatch: str) -> None:
        self.canary_failures += 1
        self.message = f"canary: {mismatch}"
        log.warning("canary_failed", weight_version=manifest.weight_version, reason=mismatch)
        await self._events.append(
            self._generator_id, "canary_failed", weight_version=manifest.weight_version, message=mismatch
        )
