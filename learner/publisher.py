"""Publishes versions beside the training: encode, write and announce happen on a thread of their own.

Knows the store and the event stream; gets tensors that are already copies in the wire's type.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.contracts import Canary, FileKind, WeightManifest
from services.streams.events import EventLog
from services.weights.publisher import WeightPublisher
from services.weights.tensors import Tensors

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Publication:
    """What publishing one version cost."""

    manifest: WeightManifest
    seconds: float

    @property
    def sync_bytes(self) -> int:
        """What a generator one version behind fetches."""
        sizes = [entry.size_bytes for entry in self.manifest.files if entry.kind is not FileKind.MODEL]
        return min(sizes)


class Publisher:
    """One version at a time, in order."""

    def __init__(self, store: WeightPublisher, events: EventLog) -> None:
        self._store = store
        self._events = events
        self.on_published: Callable[[int], None] = lambda version: None
        """Called with each version once it is durable, on the publisher's thread."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publisher")

    def newest(self) -> int | None:
        """The version that generators are told is the newest; None before the first."""
        manifest = self._store.latest()
        return manifest.weight_version if manifest else None

    def take_back(self, after: int) -> None:
        """Drop the versions after that one; call it while nothing is being published. Generators follow back."""
        log.warning("versions_taken_back", newest=self.newest(), after=after)
        self._store.retract_after(after)

    def submit(
        self,
        version: int,
        tensors: Tensors,
        model_files: Mapping[str, Path] | None = None,
        canaries: Sequence[Canary] = (),
        adapters: Tensors | None = None,
    ) -> Future[Publication]:
        """Start publishing; `adapters` make `tensors` of version 0. No tensor may change until the future is done."""
        return self._thread.submit(self._publish, version, tensors, model_files or {}, canaries, adapters)

    def close(self) -> None:
        """Finish what was submitted."""
        self._thread.shutdown(wait=True)

    def _publish(
        self,
        version: int,
        tensors: Tensors,
        model_files: Mapping[str, Path],
        canaries: Sequence[Canary],
        adapters: Tensors | None,
    ) -> Publication:
        started = time.monotonic()
        manifest = self._store.publish(version, tensors, model_files, canaries, adapters)
        publication = Publication(manifest, time.monotonic() - started)
        self._events.append("learner", "published", weight_version=version, digest=manifest.digest)
        log.info(
            "published",
            weight_version=version,
            sync_bytes=publication.sync_bytes,
            full_bytes=manifest.full_bytes,
            publish_s=round(publication.seconds, 3),
        )
        self.on_published(version)
        return publication
