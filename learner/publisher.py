"""Publishes versions while training goes on: encoding, writing and announcing happen on a thread of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from learner.model import hf_checkpoint
from learner.model.canary import compute_canaries
from learner.model.trained_model import TrainedModel
from learner.model.wire_tensors import wire_adapters, wire_changes, wire_tensors
from learner.model_folder.files import files_left_out, model_files
from services.contracts import Canary, FileKind, WeightManifest
from services.streams.events import EventLog
from services.tensors import Tensors, read_safetensors
from services.weights.delta.plain import Flips
from services.weights.publisher import WeightPublisher

log = structlog.get_logger()

T = TypeVar("T")


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


@dataclass(frozen=True, slots=True)
class VersionContents:
    """What a version is made of: copies, so that training may go on."""

    tensors: Tensors
    """The whole version; empty where `flips` make it of the version before."""
    model_files: Mapping[str, Path] = field(default_factory=dict)
    """Config and tokenizer files by name; they belong to version 0."""
    canaries: tuple[Canary, ...] = ()
    adapters: Tensors | None = None
    """What makes the tensors of version 0, for a model with adapters."""
    flips: Sequence[Flips] | None = None
    seconds: float = 0.0
    """Spent on gathering or comparing."""


def contents_of_model(model: TrainedModel, version: int, canary_prompts: int) -> VersionContents:
    """The weights as they are now, with so many canaries. All ranks of the model take part.

    The version after the last one that was made like this has only what changes; whoever publishes it must have
    published the one before.
    """
    started = time.monotonic()
    follows = model.published.version is not None and model.published.version == version - 1
    flips = wire_changes(model) if follows else None
    tensors = wire_tensors(model) if flips is None else {}
    seconds = time.monotonic() - started
    adapters = wire_adapters(model)
    model.published.version = version if adapters is None else None
    return VersionContents(
        tensors=tensors,
        model_files=_files_to_publish(model.folder) if version == 0 else {},
        canaries=compute_canaries(model, canary_prompts),
        adapters=adapters,
        flips=flips,
        seconds=seconds,
    )


def contents_of_folder(folder: Path) -> VersionContents:
    """The model of a Hugging Face folder, byte for byte, from the files that its index names; else ModelError."""
    stored = hf_checkpoint.stored_tensors(folder)
    files = {path: read_safetensors(path) for path in sorted({tensor.path for tensor in stored.values()})}
    tensors = {name: files[tensor.path][name] for name, tensor in stored.items()}
    return VersionContents(tensors, _files_to_publish(folder))


def _files_to_publish(folder: Path) -> dict[str, Path]:
    """The model's files that exports and engines get; the log says which they do not get."""
    left_out = files_left_out(folder)
    if left_out:
        log.info("model_files_left_out", folder=str(folder), files=left_out)
    return model_files(folder)


Published = Callable[[int], None]
"""Called with a version once it is durable, on the publisher's thread; what it raises fails the publication."""


SlowestLine = Callable[[], float | None]
"""Bytes per second that reach the generator with the slowest line; None while no line is measured."""


class Publisher:
    """One version at a time, in order."""

    def __init__(self, store: WeightPublisher, events: EventLog, slowest_line: SlowestLine = lambda: None) -> None:
        self._store = store
        self._events = events
        self._slowest_line = slowest_line
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publisher")

    def newest(self) -> int | None:
        """The newest version that generators can see; None before the first."""
        manifest = self._store.latest()
        return manifest.weight_version if manifest else None

    def retract_after(self, version: int) -> None:
        """Drop the later versions; call it while nothing is being published. Generators go back to `version`."""
        log.warning("versions_retracted", newest=self.newest(), after=version)
        self._store.retract_after(version)

    def submit(
        self, version: int, contents: VersionContents, published: Published | None = None
    ) -> Future[Publication]:
        """Start publishing a version."""
        return self._thread.submit(self._publish, version, contents, published)

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Do something between two publications, when the store is at rest."""
        return self._thread.submit(work)

    def close(self) -> None:
        """Finish what was submitted."""
        self._thread.shutdown(wait=True)
        self._store.close()

    def _publish(self, version: int, contents: VersionContents, published: Published | None) -> Publication:
        started = time.monotonic()
        if contents.flips is None:
            manifest = self._store.publish(
                version, contents.tensors, contents.model_files, contents.canaries, contents.adapters
            )
        else:
            manifest = self._store.publish_changes(
                version, contents.flips, contents.canaries, line_bytes_per_s=self._slowest_line()
            )
        publication = Publication(manifest, time.monotonic() - started)
        self._events.append("learner", "published", weight_version=version, digest=manifest.digest)
        log.info(
            "published",
            weight_version=version,
            sync_bytes=publication.sync_bytes,
            full_bytes=manifest.full_bytes,
            gather_s=round(contents.seconds, 3),
            publish_s=round(publication.seconds, 3),
            **{f"{what}_s": round(seconds, 3) for what, seconds in self._store.seconds.items()},
        )
        if published is not None:
            published(version)
        return publication
