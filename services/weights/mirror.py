"""A generator's verified copy of one version in host memory, updated by deltas, adapters or snapshots.

folder/fetched/     downloads, deleted once they are part of the copy
folder/resources/   config and tokenizer files, by digest
folder/model/       a Hugging Face folder of some version, with its manifest: an engine starts from it, and so does
                    the mirror of the next process
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
from pydantic import ValidationError

from services import durable
from services.contracts import FileEntry, FileKind, WeightManifest
from services.errors import VersionNotFoundError, WeightError
from services.tensors import RawTensor, Tensors, digest_file, read_safetensors, write_safetensors
from services.time_accounting import StateClock
from services.weights.chain import apply_change, change_of, verify_tensors
from services.weights.client import WeightClient
from services.weights.delta import Patch
from services.weights.host_downloads import HostDownloads

WEIGHTS_NAME = "model.safetensors"
MANIFEST_NAME = "weight_manifest.json"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """What changed from the version held before to `manifest`'s."""

    manifest: WeightManifest
    patches: list[Patch] | None
    """To be applied to the version held before, in this order; None: replace everything."""
    changed: frozenset[str]
    """Names of the tensors that differ."""
    fetched_bytes: int
    tensors: Mapping[str, RawTensor]
    """The whole version. Valid until the mirror's next `advance`, which changes these bytes in place."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Spent on fetch, decode and digest."""


@dataclass(frozen=True, slots=True)
class _Base:
    """The version that adapters change, kept for the next adapters: views of its snapshot's file, never patched."""

    digest: str
    tensors: Tensors


@dataclass(slots=True)
class _Copy:
    """A version in memory. `owned` tensors are private bytes, the others read-only views of a file."""

    manifest: WeightManifest
    tensors: dict[str, RawTensor]
    owned: set[str] = field(default_factory=set)
    base: _Base | None = None
    """Set once adapters were applied."""


@dataclass(frozen=True, slots=True)
class _Route:
    """A way to a version: from a snapshot (or from what is held, when None), then deltas or adapters in order."""

    snapshot: WeightManifest | None
    changes: tuple[WeightManifest, ...]
    size_bytes: int


class WeightMirror:
    """Holds at most one version, and only a verified one. One process per folder, one `advance` at a time.

    `downloads`: of this host, for mirrors of several generators to share.
    """

    def __init__(self, folder: Path, client: WeightClient, downloads: HostDownloads | None = None) -> None:
        self._folder = folder
        self._client = client
        self._downloads = downloads or client
        self._copy: _Copy | None = None
        self._opened = False

    @property
    def version(self) -> int | None:
        return self._copy.manifest.weight_version if self._copy else None

    @property
    def digest(self) -> str | None:
        return self._copy.manifest.digest if self._copy else None

    @property
    def tensors(self) -> dict[str, RawTensor]:
        """Empty until the first `advance`; see WeightUpdate.tensors about their lifetime."""
        return self._copy.tensors if self._copy else {}

    async def advance(self, manifest: WeightManifest) -> WeightUpdate:
        """Become `manifest`'s version by whichever route costs fewer bytes.

        If a route does not lead to the digests of the manifest, the nearest snapshot is used instead. WeightError when
        that fails too; the mirror then holds nothing, and the next call starts afresh.
        """
        if not self._opened:
            self._copy = await asyncio.to_thread(self._open, manifest.run_id)
            self._opened = True
        changed = _differing(self._copy.manifest if self._copy else None, manifest)
        route = await self._choose(manifest, self._copy)
        if route.snapshot is None:
            try:
                patches, seconds = await self._travel(route, manifest)
                return WeightUpdate(manifest, patches, changed, route.size_bytes, self.tensors, seconds)
            except WeightError as error:
                log.warning("weight_changes_refused", weight_version=manifest.weight_version, reason=error.message)
                route = await self._choose(manifest, None)
        _, seconds = await self._travel(route, manifest)
        return WeightUpdate(manifest, None, changed, route.size_bytes, self.tensors, seconds)

    async def renew(self, manifest: WeightManifest) -> WeightUpdate:
        """Become `manifest`'s version from a snapshot, and replace every tensor, whatever is held and served."""
        route = await self._choose(manifest, None)
        _, seconds = await self._travel(route, manifest)
        return WeightUpdate(manifest, None, _differing(None, manifest), route.size_bytes, self.tensors, seconds)

    async def model_folder(self) -> Path:
        """Write the version held, with its config and tokenizer, as a Hugging Face folder and return its path."""
        if self._copy is None:
            raise WeightError("the mirror holds no version yet", hint="advance it first")
        source = self._copy.manifest
        if not _model_entries(source):
            source = await self._client.manifest(0)
        resources = {}
        for entry in _model_entries(source):
            resources[entry.name] = await self._fetch(source, entry, self._folder / "resources")
        await asyncio.to_thread(self._write_model, self._copy, resources)
        return self._folder / "model"

    # Choosing a route

    async def _choose(self, target: WeightManifest, held: _Copy | None) -> _Route:
        """Walk from the target to its ancestors until the version held, or until no cheaper route is possible.

        Adapters whose base is held apply to any version: a generator fetches only the newest ones.
        """
        changes: list[WeightManifest] = []
        cost = 0
        full: _Route | None = None
        step: WeightManifest | None = target
        while step is not None:
            if held is not None and step.digest == held.manifest.digest:
                return _Route(None, tuple(reversed(changes)), cost)
            snapshot, change = step.file(FileKind.SNAPSHOT), step.change
            if full is None and snapshot is not None:
                full = _Route(step, tuple(reversed(changes)), cost + snapshot.size_bytes)
            if change is None or (full is not None and (held is None or cost + change.size_bytes >= full.size_bytes)):
                break
            changes.append(step)
            cost += change.size_bytes
            if change.kind is FileKind.ADAPTERS and held is not None and _is_base(held.base, step):
                return _Route(None, tuple(reversed(changes)), cost)
            step = await self._parent(step, held.manifest if held else None)
        if full is None:
            raise VersionNotFoundError(
                f"no snapshot leads to weight version {target.weight_version}", hint="ask for the latest version"
            )
        return full

    async def _parent(self, step: WeightManifest, held: WeightManifest | None) -> WeightManifest | None:
        """The version that the step's change applies to; None when it is retired or replaced."""
        if held is not None and step.parent_digest == held.digest:
            return held
        if step.parent_version is None:
            return None
        try:
            parent = await self._client.manifest(step.parent_version)
        except VersionNotFoundError:
            return None
        return parent if parent.digest == step.parent_digest else None

    # Taking the route

    async def _travel(self, route: _Route, target: WeightManifest) -> tuple[list[Patch], dict[str, float]]:
        """Fetch everything, then build and verify in a thread; the copy held stays until all bytes are here.

        Returns the patches, and the seconds for each kind of work.
        """
        clock = StateClock("fetch")
        fetched = self._folder / "fetched"
        snapshot = None
        if route.snapshot is not None:
            snapshot = await self._fetch(route.snapshot, _snapshot_of(route.snapshot), fetched)
        changes = [(step, await self._fetch(step, change_of(step), fetched)) for step in route.changes]
        # from here the held bytes change in place: unless the build succeeds, nothing is held
        held, self._copy = self._copy, None
        try:
            self._copy, patches = await asyncio.to_thread(_build, target, snapshot or held, changes, clock)
        finally:
            await asyncio.to_thread(_empty, fetched)
        return patches, clock.seconds()

    async def _fetch(self, manifest: WeightManifest, entry: FileEntry, folder: Path) -> Path:
        path = folder / entry.digest
        if await asyncio.to_thread(_is_whole, path, entry):
            return path
        return await self._downloads.fetch(manifest.weight_version, entry, path)

    # On disk

    def _open(self, run_id: str) -> _Copy | None:
        """The model folder that an earlier process left, if it is whole and of this run."""
        for name in ("fetched", "resources"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        durable.clear_partial(self._folder)
        model = self._folder / "model"
        try:
            manifest = WeightManifest.model_validate_json((model / MANIFEST_NAME).read_bytes())
            tensors = read_safetensors(model / WEIGHTS_NAME)
            verify_tensors(tensors, manifest.tensors)
        except FileNotFoundError:
            return None
        except (WeightError, ValidationError) as error:
            log.warning("weight_mirror_discarded", folder=str(model), reason=str(error))
            return None
        return _Copy(manifest, tensors) if manifest.run_id == run_id else None

    def _write_model(self, copy: _Copy, resources: Mapping[str, Path]) -> None:
        with durable.new_folder(self._folder / "model") as folder:
            for name, source in resources.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / name)
            write_safetensors(folder / WEIGHTS_NAME, copy.tensors)
            durable.write_file(folder / MANIFEST_NAME, copy.manifest.model_dump_json())


def _build(
    target: WeightManifest,
    start: Path | _Copy | None,
    changes: Sequence[tuple[WeightManifest, Path]],
    clock: StateClock,
) -> tuple[_Copy, list[Patch]]:
    """`target` from a snapshot's file or a copy, which is used up, and the files of changes in order."""
    if start is None:
        raise WeightError(f"nothing is held to build weight version {target.weight_version} from")
    copy = _Copy(target, read_safetensors(start)) if isinstance(start, Path) else replace(start, manifest=target)
    clock.enter("decode")
    patches = []
    for step, path in changes:
        kind = change_of(step).kind
        if kind is FileKind.ADAPTERS and not _is_base(copy.base, step):
            copy.base = _Base(str(step.parent_digest), dict(copy.tensors))
            copy.owned = set()  # what the base holds too is replaced, and patched no more
        patches += apply_change(kind, path, copy.tensors, copy.owned, copy.base.tensors if copy.base else None)
    clock.enter("digest")
    touched = {each.name for each in patches} | _differing(None if isinstance(start, Path) else start.manifest, target)
    verify_tensors(copy.tensors, target.tensors, known=copy.tensors.keys() - touched)
    return copy, patches


def _is_base(base: _Base | None, step: WeightManifest) -> bool:
    return base is not None and base.digest == step.parent_digest


def _is_whole(path: Path, entry: FileEntry) -> bool:
    """Whether an earlier process left the file, and nothing has happened to it since."""
    return path.exists() and digest_file(path) == entry.digest


def _empty(folder: Path) -> None:
    """Views of a snapshot stay valid after its file is unlinked."""
    for path in folder.iterdir():
        path.unlink()


def _differing(before: WeightManifest | None, after: WeightManifest) -> frozenset[str]:
    old = {entry.name: entry for entry in before.tensors} if before else {}
    return frozenset(entry.name for entry in after.tensors if old.get(entry.name) != entry)


def _model_entries(manifest: WeightManifest) -> list[FileEntry]:
    return [entry for entry in manifest.files if entry.kind is FileKind.MODEL]


def _snapshot_of(manifest: WeightManifest) -> FileEntry:
    entry = manifest.file(FileKind.SNAPSHOT)
    if entry is None:
        raise WeightError(f"weight version {manifest.weight_version} has no snapshot")
    return entry
