"""Publishes versions into a run's weight folder and retires old ones. One process writes: the learner.

The layout of the folder is in `services.weights.reader`.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from services import durable
from services.contracts import Canary, FileEntry, FileKind, FileName, TensorEntry, WeightManifest
from services.durable import UNGUARDED, WriteGuard
from services.errors import WeightError
from services.tensors import (
    Tensors,
    describe,
    digest_file,
    read_safetensors,
    version_digest,
    write_safetensors,
)
from services.weights.changes import Change, ChangeChooser
from services.weights.delta import plain
from services.weights.delta.plain import Flips
from services.weights.encoding import OWN_PROCESS_BYTES, EncoderProcess, Job, VersionEncoder, prefers_small
from services.weights.reader import (
    ADAPTERS_NAME,
    DELTA_NAME,
    MANIFEST_NAME,
    MAX_VERSION,
    SNAPSHOT_NAME,
    WeightReader,
    sealed,
)

ANCHOR_EVERY = 20
"""Every so many versions a delta comes with a full snapshot. At 0.1 % a delta, 20 of them are 2 % of a snapshot."""

KEEP_VERSIONS = 60
"""The newest so many are kept, and older ones that these are built from."""

WEIGHT_KINDS = {
    SNAPSHOT_NAME: FileKind.SNAPSHOT,
    DELTA_NAME: FileKind.DELTA,
    ADAPTERS_NAME: FileKind.ADAPTERS,
}
RESERVED_NAMES = frozenset({MANIFEST_NAME, *WEIGHT_KINDS})

_FILE_NAME: TypeAdapter[str] = TypeAdapter(FileName)


class WeightPublisher(WeightReader):
    """The only writer of one run's versions.

    `keep_versions`: the newest so many are kept, and older ones that these are built from. Version 0 always stays: it
    holds the model files. `anchor_every`: a delta to a version divisible by it comes with a full snapshot.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        *,
        keep_versions: int = KEEP_VERSIONS,
        anchor_every: int = ANCHOR_EVERY,
        fence: WriteGuard = UNGUARDED,
    ) -> None:
        super().__init__(folder, run_id)
        self._fence = fence
        self.retracted: set[str] = set()
        """Digests of the versions that this process took back: generators may still sample by them for a while."""
        self._chooser = ChangeChooser(self)
        self._keep_versions = keep_versions
        self._anchor_every = anchor_every
        self._last: tuple[WeightManifest, Tensors] | None = None
        self._encoder: VersionEncoder | EncoderProcess | None = None
        self._newest: WeightManifest | None = None
        """The version published last, which the encoder holds or can read from its files."""
        self.seconds: Mapping[str, float] = {}
        """What the encoder spent on the newest version, by kind of work."""
        self._cleared = False

    def publish(
        self,
        version: int,
        tensors: Tensors,
        model_files: Mapping[str, Path] | None = None,
        canaries: Sequence[Canary] = (),
        packed: Tensors | None = None,
    ) -> WeightManifest:
        """Make a version visible; `model_files` (config, tokenizer) belong to version 0.

        `packed`: adapters (`services.weights.adapters`) that make `tensors` of version 0. The first version that can
        be sent both as adapters and as a delta decides which of the two this process sends: the smaller one.

        Publishing the same content again changes nothing. Other content replaces the version and drops the later
        ones. `tensors` are kept until the next publish, so their bytes must not change.
        """
        if not 0 <= version <= MAX_VERSION:
            raise WeightError(f"weight version {version} is outside 0 .. {MAX_VERSION}")
        self._clear_leftovers()
        entries = describe(tensors)
        existing = self.find(version)
        if existing is not None and existing.digest == version_digest(entries):
            self._last = (existing, tensors)
            self._start_encoder(existing, tensors)
            return existing
        change = self._chooser.choose(version, entries, tensors, packed, self._last) if version else None
        self._retract_from(version, existing)
        with self._fence.guard_after(durable.new_folder(self.folder_of(version))) as folder:
            self._write_files(folder, version, tensors, change, model_files or {})
            manifest = self._write_manifest(folder, version, entries, change.parent if change else None, canaries)
        self._last = (manifest, tensors)
        self._start_encoder(manifest, tensors)
        self.retire()
        return manifest

    def publish_changes(
        self,
        version: int,
        flips: Sequence[Flips],
        canaries: Sequence[Canary] = (),
        *,
        line_bytes_per_s: float | None = None,
    ) -> WeightManifest:
        """Make a version visible that flips bits of the one before, which this object must have published last.

        `line_bytes_per_s`: the slowest generator's, as measured; it decides between small and plain coding.
        Calling it again with the same flips is safe, as `publish` is.
        """
        parent, stored = self._newest, self.find(version - 1)
        if self._encoder is None or parent is None or parent.weight_version != version - 1:
            raise WeightError(f"version {version} does not follow what was published last", hint="publish it whole")
        if stored is not None and stored.digest != parent.digest:
            raise WeightError(
                f"version {version} was compared with {parent.digest}, version {version - 1} is {stored.digest}",
                hint="something else writes into this folder: two learners of one run?",
            )
        self._last = None
        coded = plain.encode(plain.layout_of({entry.name: entry for entry in parent.tensors}), flips)
        small = prefers_small(len(coded), parent.full_bytes, line_bytes_per_s)
        with self._staged() as staged:
            durable.write_file(staged / DELTA_NAME, coded)
            anchored = version % self._anchor_every == 0 or stored is None
            made = self._encoder.make(Job(parent, staged, small=small, snapshot=anchored))
            if stored is None:  # it was damaged: nobody could apply a delta to it
                (staged / DELTA_NAME).unlink(missing_ok=True)
            existing = self.find(version)
            if existing is None or existing.digest != version_digest(made.entries):
                self._retract_from(version, existing)
                with self._fence.guard_after(durable.new_folder(self.folder_of(version))) as folder:
                    for path in staged.iterdir():
                        path.replace(folder / path.name)
                    changes = (folder / DELTA_NAME).exists()
                    existing = self._write_manifest(
                        folder, version, made.entries, parent if changes else None, canaries
                    )
        self._newest = existing
        self.seconds = made.seconds
        self.retire()
        return existing

    def close(self) -> None:
        """End the encoder's process, where it has one."""
        if self._encoder is not None:
            self._encoder.close()

    def _retract_from(self, version: int, existing: WeightManifest | None) -> None:
        """Make room for another version of this number."""
        self.retract_after(version)
        if existing is not None:
            self.retracted.add(existing.digest)

    @contextlib.contextmanager
    def _staged(self) -> Iterator[Path]:
        """A temporary folder in the store's, for files that may become a version."""
        folder = Path(tempfile.mkdtemp(prefix=durable.TEMPORARY_PREFIX, dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _start_encoder(self, manifest: WeightManifest, tensors: Tensors) -> None:
        """Whatever follows may be published by its changes."""
        self._newest = manifest
        if manifest.full_bytes >= OWN_PROCESS_BYTES:
            self._encoder = self._encoder or EncoderProcess(self.folder, self.run_id)
        else:
            self._encoder = VersionEncoder(self.folder, self.run_id)
            self._encoder.hold(manifest, tensors)

    def restore(
        self,
        version: int,
        tensors: Tensors,
        model_files: Mapping[str, Path] | None = None,
        canaries: Sequence[Canary] = (),
    ) -> WeightManifest:
        """Replace a damaged version by a snapshot of the same content; later versions stay."""
        with self._fence.guard_after(durable.new_folder(self.folder_of(version))) as folder:
            self._write_files(folder, version, tensors, None, model_files or {})
            return self._write_manifest(folder, version, describe(tensors), None, canaries)

    def drop(self, version: int) -> None:
        """Take a version away; one rename does, and its files are deleted afterwards."""
        with self._fence.guard():
            outgoing = Path(tempfile.mkdtemp(prefix=durable.TEMPORARY_PREFIX, dir=self.folder))
            self.folder_of(version).replace(outgoing)
            durable.fsync_folder(self.folder)
        shutil.rmtree(outgoing)

    @property
    def last_published(self) -> WeightManifest | None:
        """What this process published last, whatever has become of its files."""
        return self._newest

    def held(self) -> tuple[WeightManifest, Tensors] | None:
        """The version published last, if its tensors are in memory, here or in the encoder's process."""
        if self._last is not None or self._newest is None or self._encoder is None:
            return self._last
        with self._staged() as staged:
            path = staged / SNAPSHOT_NAME
            return (self._newest, read_safetensors(path)) if self._encoder.save(self._newest.digest, path) else None

    def _write_manifest(
        self,
        folder: Path,
        version: int,
        entries: Sequence[TensorEntry],
        parent: WeightManifest | None,
        canaries: Sequence[Canary],
    ) -> WeightManifest:
        """The manifest of the files that the folder holds already."""
        manifest = WeightManifest(
            run_id=self.run_id,
            weight_version=version,
            parent_version=parent.weight_version if parent else None,
            parent_digest=parent.digest if parent else None,
            digest=version_digest(entries),
            tensors=tuple(entries),
            files=tuple(_describe_files(folder)),
            epoch=self._fence.epoch,
            canaries=tuple(canaries),
            created_at=time.time(),
        )
        durable.write_file(folder / MANIFEST_NAME, sealed(manifest))
        return manifest

    def retire(self) -> None:
        """Drop versions older than the newest `keep_versions`, but none that one of these is built from, and not 0."""
        versions = self.versions()
        if len(versions) <= self._keep_versions:
            return
        needed = {0}
        for version in versions[-self._keep_versions :]:
            step = self.manifest(version)
            while step.weight_version not in needed:
                needed.add(step.weight_version)
                if step.file(FileKind.SNAPSHOT) is None:
                    step = self.parent_of(step)
        for version in versions:
            if version not in needed:
                self.drop(version)

    def retract_after(self, version: int) -> None:
        """Drop every later version, newest first, so that what remains is a complete history at any moment."""
        for later in reversed(self.versions()):
            if later > version:
                self.retracted |= {manifest.digest for manifest in [self.find(later)] if manifest is not None}
                self.drop(later)

    # On disk

    def _write_files(
        self, folder: Path, version: int, tensors: Tensors, change: Change | None, model_files: Mapping[str, Path]
    ) -> None:
        content = change.content if change else None
        if content is None or (isinstance(content, bytes) and version % self._anchor_every == 0):
            write_safetensors(folder / SNAPSHOT_NAME, tensors)
        if isinstance(content, bytes):
            durable.write_file(folder / DELTA_NAME, content)
        elif content is not None:
            write_safetensors(folder / ADAPTERS_NAME, content)
        for name, source in model_files.items():
            _check_model_name(name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)

    def _clear_leftovers(self) -> None:
        if not self._cleared:
            with self._fence.guard():
                durable.clear_partial(self.folder)
            self._cleared = True


def _describe_files(folder: Path) -> Iterator[FileEntry]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        kind = WEIGHT_KINDS.get(name, FileKind.MODEL)
        yield FileEntry(name=name, kind=kind, size_bytes=path.stat().st_size, digest=digest_file(path))


def _check_model_name(name: str) -> None:
    try:
        _FILE_NAME.validate_python(name)
    except ValidationError as error:
        raise WeightError(f"model file {name!r} is not a name that can be sent") from error
    if name in RESERVED_NAMES:
        raise WeightError(f"model file {name!r} is a name that the weight folder uses itself")
