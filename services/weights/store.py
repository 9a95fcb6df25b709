"""The published versions on disk: what is written, in which order, and what is retired. Knows no network, no training.

    weights/00000000/   manifest.json, model.safetensors, config.json, tokenizer.json ...
    weights/00000001/   manifest.json, delta.bin
    weights/00000020/   manifest.json, delta.bin, model.safetensors
    weights/00000021/   manifest.json, adapters.safetensors: where a learner sends those alone

A version's folder appears under its name in one rename, so a version is whole or not there. One process writes
(`publish` or `adopt`); any number read at the same time.
"""

from __future__ import annotations

import functools
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from services import durable
from services.contracts import Canary, FileEntry, FileKind, FileName, TensorEntry, WeightManifest
from services.errors import ContractError, DigestError, VersionNotFoundError, WeightError
from services.weights import adapters, delta
from services.weights.chain import change_of, lay, verify
from services.weights.tensors import (
    RawTensor,
    Tensors,
    describe,
    digest_file,
    read_safetensors,
    version_digest,
    write_safetensors,
)

MANIFEST_NAME = "manifest.json"
SNAPSHOT_NAME = "model.safetensors"
DELTA_NAME = "delta.bin"
ADAPTERS_NAME = "adapters.safetensors"
WEIGHT_NAMES = {FileKind.SNAPSHOT: SNAPSHOT_NAME, FileKind.DELTA: DELTA_NAME, FileKind.ADAPTERS: ADAPTERS_NAME}
RESERVED_NAMES = frozenset({MANIFEST_NAME, *WEIGHT_NAMES.values()})

MAX_VERSION = 99_999_999
"""Folder names have eight digits."""

_FOLDER = re.compile(r"[0-9]{8}")
_FILE_NAME: TypeAdapter[str] = TypeAdapter(FileName)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """What makes a version of another: a delta, or the tensors of a file of adapters."""

    parent: WeightManifest
    content: bytes | Tensors


class WeightStore:
    """Versions of one run below one folder; not safe for two writers.

    `anchor_every`: versions divisible by it carry a full snapshot. `keep_versions`: the newest so many are kept, with
    whatever their delta chains need; version 0 always stays, it holds the model files.
    """

    def __init__(self, folder: Path, run_id: str, *, anchor_every: int, keep_versions: int) -> None:
        self.folder = folder
        self.run_id = run_id
        self._anchor_every = anchor_every
        self._keep_versions = keep_versions
        self._held: tuple[WeightManifest, Tensors] | None = None
        self._cleared = False

    # Reading

    def versions(self) -> list[int]:
        """Visible versions, ascending."""
        if not self.folder.is_dir():
            return []
        folders = [path for path in self.folder.iterdir() if _FOLDER.fullmatch(path.name)]
        return sorted(int(path.name) for path in folders if (path / MANIFEST_NAME).is_file())

    def latest(self) -> WeightManifest | None:
        """The newest version's manifest; None before the first is published."""
        for version in reversed(self.versions()):
            try:
                return self.manifest(version)
            except VersionNotFoundError:
                continue  # retired or replaced since it was listed
        return None

    def manifest(self, version: int) -> WeightManifest:
        """VersionNotFoundError when it is not in the store, WeightError when it is not of this run."""
        path = self._folder_of(version) / MANIFEST_NAME
        try:
            status = path.stat()
            manifest = _read_manifest(path, status.st_ino, status.st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise VersionNotFoundError(
                f"weight version {version} is not in the store", hint="ask for the latest version"
            ) from error
        except ValidationError as error:
            raise WeightError(f"{path} is not a manifest: {error.error_count()} errors") from error
        if manifest.run_id != self.run_id or manifest.weight_version != version:
            raise WeightError(
                f"{path} is version {manifest.weight_version} of run {manifest.run_id!r}, not of {self.run_id!r}",
                hint="start the run in a folder of its own",
            )
        return manifest

    def file_path(self, version: int, name: str) -> Path:
        """Where the version's file lies; only names that its manifest lists are ever opened."""
        entry = next((entry for entry in self.manifest(version).files if entry.name == name), None)
        if entry is None:
            raise VersionNotFoundError(f"weight version {version} has no file {name[:128]!r}")
        return self._folder_of(version) / entry.name

    def load(self, version: int) -> dict[str, RawTensor]:
        """Nearest snapshot, then deltas; DigestError unless every tensor is what the manifest promises."""
        target = self.manifest(version)
        chain = [target]
        while chain[-1].file(FileKind.SNAPSHOT) is None:
            chain.append(self._parent(chain[-1]))
        start = chain.pop()
        tensors = read_safetensors(self._folder_of(start.weight_version) / SNAPSHOT_NAME)
        owned: set[str] = set()
        for step in reversed(chain):
            change = change_of(step)
            lay(change.kind, self._folder_of(step.weight_version) / change.name, tensors, owned)
        verify(tensors, target.tensors)
        return tensors

    def _parent(self, manifest: WeightManifest) -> WeightManifest:
        if manifest.parent_version is None:
            raise WeightError(f"weight version {manifest.weight_version} has neither snapshot nor parent")
        parent = self.manifest(manifest.parent_version)
        if parent.digest != manifest.parent_digest:
            raise WeightError(
                f"weight version {manifest.weight_version} continues another version {parent.weight_version}: "
                f"{manifest.parent_digest} is not {parent.digest}"
            )
        return parent

    def _folder_of(self, version: int) -> Path:
        return self.folder / f"{version:08d}"

    # Writing

    def publish(
        self,
        version: int,
        tensors: Tensors,
        model_files: Mapping[str, Path] | None = None,
        canaries: Sequence[Canary] = (),
        packed: Tensors | None = None,
    ) -> WeightManifest:
        """Make a version visible; `model_files` (config, tokenizer) belong to version 0.

        `packed`: adapters (`services.weights.adapters`) that make it of version 0, to be stored instead of a delta.

        The same content again changes nothing. Other content replaces the version and drops the later ones. The
        store keeps `tensors` until the next publish, so their bytes must not change.
        """
        if not 0 <= version <= MAX_VERSION:
            raise WeightError(f"weight version {version} is outside 0 .. {MAX_VERSION}")
        self._clear_leftovers()
        entries = describe(tensors)
        existing = self._find(version)
        if existing is not None and existing.digest == version_digest(entries):
            self._held = (existing, tensors)
            return existing
        change = self._adapters(entries, tensors, packed) if version and packed else None
        if change is None and version:
            change = self._delta(version - 1, entries, tensors)
        self.drop_after(version)
        with durable.new_folder(self._folder_of(version)) as folder:
            self._write_files(folder, version, tensors, change, model_files or {})
            manifest = WeightManifest(
                run_id=self.run_id,
                weight_version=version,
                parent_version=change.parent.weight_version if change else None,
                parent_digest=change.parent.digest if change else None,
                digest=version_digest(entries),
                tensors=entries,
                files=tuple(_describe_files(folder)),
                canaries=tuple(canaries),
                created_at=time.time(),
            )
            durable.write_file(folder / MANIFEST_NAME, manifest.model_dump_json())
        self._held = (manifest, tensors)
        self.retire()
        return manifest

    def _delta(self, parent_version: int, entries: Sequence[TensorEntry], tensors: Tensors) -> _Change | None:
        """The delta, unless there is nothing to apply it to or it would not be smaller than a snapshot."""
        parent = self._find(parent_version)
        if parent is None or _layout(parent.tensors) != _layout(entries):
            return None
        change = delta.encode(self._tensors_of(parent), tensors)
        return _Change(parent, change) if len(change) < parent.full_bytes else None

    def _adapters(self, entries: Sequence[TensorEntry], tensors: Tensors, packed: Tensors) -> _Change | None:
        """The adapters, if version 0 is there and they make these very tensors of it, as they must for every mirror."""
        base = self._find(0)
        if base is None or _layout(base.tensors) != _layout(entries):
            return None
        names = set(adapters.adapted(packed))
        frozen = [[entry for entry in side if entry.name not in names] for side in (base.tensors, entries)]
        held = read_safetensors(self._folder_of(0) / SNAPSHOT_NAME)
        if frozen[0] != frozen[1] or any(True for _ in adapters.decode(held, tensors, packed)):
            log.warning("adapters_not_sent", reason="version 0 with the adapters is not what is published")
            return None
        return _Change(base, packed)

    def _tensors_of(self, manifest: WeightManifest) -> Tensors:
        if self._held is not None and self._held[0].digest == manifest.digest:
            return self._held[1]
        return self.load(manifest.weight_version)

    def _write_files(
        self, folder: Path, version: int, tensors: Tensors, change: _Change | None, model_files: Mapping[str, Path]
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
            shutil.copyfile(source, folder / name)

    def adopt(self, manifest: WeightManifest, files: Mapping[str, Path]) -> None:
        """Make a version visible that was built elsewhere; its `files` (by name) are moved into the store.

        Nothing becomes visible unless the files, the tensors in them and the parent are all as the manifest says.
        """
        if manifest.run_id != self.run_id:
            raise ContractError(
                f"the manifest is of run {manifest.run_id!r}, this store holds {self.run_id!r}",
                hint="give the learner and the services the same run",
            )
        existing = self._find(manifest.weight_version)
        if existing is not None and existing.digest == manifest.digest:
            return
        self._clear_leftovers()
        tensors = self._check(manifest, files)
        self.drop_after(manifest.weight_version)
        with durable.new_folder(self._folder_of(manifest.weight_version)) as folder:
            for entry in manifest.files:
                shutil.move(files[entry.name], folder / entry.name)
            durable.write_file(folder / MANIFEST_NAME, manifest.model_dump_json())
        self._held = (manifest, tensors)
        self.retire()

    def _check(self, manifest: WeightManifest, files: Mapping[str, Path]) -> Tensors:
        """The version's tensors, built from the files in every way the manifest offers."""
        if manifest.weight_version > MAX_VERSION:
            raise ContractError(f"weight version {manifest.weight_version} is above {MAX_VERSION}")
        if version_digest(manifest.tensors) != manifest.digest:
            raise DigestError("the manifest's digest is not that of its tensors")
        for entry in manifest.files:
            _check_file(entry, files.get(entry.name))
        results = []
        if manifest.file(FileKind.SNAPSHOT) is not None:
            results.append(read_safetensors(files[SNAPSHOT_NAME]))
        if (change := manifest.change) is not None:
            tensors = dict(self._tensors_of(self._parent(manifest)))
            lay(change.kind, files[change.name], tensors, set())
            results.append(tensors)
        if not results:
            raise ContractError("the manifest lists neither a snapshot nor a change")
        for tensors in results:
            verify(tensors, manifest.tensors)
        return results[-1]

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
                    step = self._parent(step)
        for version in versions:
            if version not in needed:
                self._drop(version)

    def drop_after(self, version: int) -> None:
        """Take back every later version; newest first, so that what remains is a whole history at any moment."""
        for later in reversed(self.versions()):
            if later > version:
                self._drop(later)

    def _drop(self, version: int) -> None:
        """One rename takes the version away; its files go afterwards."""
        outgoing = Path(tempfile.mkdtemp(prefix=durable.TEMPORARY_PREFIX, dir=self.folder))
        self._folder_of(version).replace(outgoing)
        durable.fsync_folder(self.folder)
        shutil.rmtree(outgoing)

    def _find(self, version: int) -> WeightManifest | None:
        try:
            return self.manifest(version)
        except VersionNotFoundError:
            return None

    def _clear_leftovers(self) -> None:
        if not self._cleared:
            durable.clear_partial(self.folder)
            self._cleared = True


@functools.lru_cache(maxsize=256)
def _read_manifest(path: Path, _inode: int, _mtime_ns: int) -> WeightManifest:
    """Parsed once per file: every poll asks for the newest. Another file of the same name has another inode or time."""
    return WeightManifest.model_validate_json(path.read_bytes())


def _layout(entries: Sequence[TensorEntry]) -> list[tuple[str, str, tuple[int, ...]]]:
    return sorted((entry.name, entry.dtype, entry.shape) for entry in entries)


def _describe_files(folder: Path) -> Iterator[FileEntry]:
    kinds = {name: kind for kind, name in WEIGHT_NAMES.items()}
    for path in sorted(folder.iterdir()):
        kind = kinds.get(path.name, FileKind.MODEL)
        yield FileEntry(name=path.name, kind=kind, size_bytes=path.stat().st_size, digest=digest_file(path))


def _check_model_name(name: str) -> None:
    try:
        _FILE_NAME.validate_python(name)
    except ValidationError as error:
        raise WeightError(f"model file {name!r} is not a plain file name") from error
    if name in RESERVED_NAMES:
        raise WeightError(f"model file {name!r} has a name that the store uses itself")


def _check_file(entry: FileEntry, path: Path | None) -> None:
    expected = WEIGHT_NAMES.get(entry.kind)
    if (entry.name in RESERVED_NAMES or expected is not None) and entry.name != expected:
        raise ContractError(f"a {entry.kind} cannot be named {entry.name!r}")
    if path is None or not path.is_file():
        raise ContractError(f"file {entry.name!r} of the manifest was not sent")
    size = path.stat().st_size
    if size != entry.size_bytes:
        raise DigestError(f"file {entry.name!r} has {size} bytes, the manifest says {entry.size_bytes}")
    if digest_file(path) != entry.digest:
        raise DigestError(f"file {entry.name!r} does not have the digest of the manifest")
