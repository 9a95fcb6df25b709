"""A generator's way to verified weights: from the copy in memory that it shares with the other generators of its host.

folder/fetched/     downloads, deleted once they are part of the copy
folder/resources/   config and tokenizer files, by digest
folder/model/       a Hugging Face folder of some version, with its manifest: the engine starts from it, and so does the
                    copy where no other process has one
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from pydantic import ValidationError

from services import durable
from services.contracts import FileEntry, FileKind, WeightManifest
from services.errors import VersionNotFoundError, WeightError
from services.tensors import RawTensor, Tensors, digest_file, read_safetensors, write_safetensors
from services.time_accounting import StateClock
from services.weights.chain import apply_change, change_of, choose_route, verify_layout, verify_tensors
from services.weights.client import WeightClient
from services.weights.delta import Patch
from services.weights.delta.sections import bits_of
from services.weights.host_copies import HostCopies, is_stuck
from services.weights.host_copy import CopyState, HostCopy, Step, size_of
from services.weights.host_downloads import HostDownloads

WEIGHTS_NAME = "model.safetensors"
MANIFEST_NAME = "weight_manifest.json"
LOOK_S = 0.02
"""How often the copy is looked at while another process changes it."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """What changed from the version that this generator had before to `manifest`'s."""

    manifest: WeightManifest
    patches: list[Patch] | None
    """To be applied to the version before, in this order; None: replace everything."""
    changed: frozenset[str]
    """Names of the tensors that differ."""
    fetched_bytes: int
    """0 where another generator of the host had fetched the version."""
    tensors: Mapping[str, RawTensor]
    """The whole version, in memory that others read too. Valid, and not to be changed, while the update is held."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Spent on fetch, decode and digest; empty where another generator of the host did it."""


@dataclass(frozen=True, slots=True)
class _Start:
    """A file that holds a whole version."""

    manifest: WeightManifest
    weights: Path


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a copy comes to hold the target: filled from the start, where there is one, then changed."""

    target: WeightManifest
    start: _Start | None
    changes: Sequence[tuple[WeightManifest, Path]]
    clock: StateClock


class WeightMirror:
    """Gives out verified versions only. One process per folder, one update at a time; `close` it.

    `downloads`, `copies` (a folder): of this host, for mirrors of several generators to share.

        async with mirror.advance(manifest) as update:      # nobody changes the bytes meanwhile
            await engine.apply(update)
    """

    def __init__(
        self, folder: Path, client: WeightClient, downloads: HostDownloads | None = None, copies: Path | None = None
    ) -> None:
        self._folder = folder
        self._client = client
        self._downloads = downloads or client
        self._copies_folder = copies or folder / "copies"
        self._copies: HostCopies | None = None
        self._left: _Start | None = None
        """The model folder of an earlier process, until it was used."""
        self._had: WeightManifest | None = None
        self._fetched_bytes = 0
        self._seconds: dict[str, float] = {}

    @property
    def version(self) -> int | None:
        """The version that was given out last."""
        return self._had.weight_version if self._had else None

    @property
    def digest(self) -> str | None:
        return self._had.digest if self._had else None

    @contextlib.asynccontextmanager
    async def advance(self, manifest: WeightManifest) -> AsyncIterator[WeightUpdate]:
        """What makes `manifest`'s version of the one before; or a newer one's that is published, if the host has it.

        Whoever comes first changes the copy, by whichever route costs fewer bytes. If a route does not lead to the
        digests of the manifest, the nearest snapshot is used instead. WeightError when that fails too; the copy then
        holds nothing, and the next call starts afresh.
        """
        async with self._hold(manifest, exactly=False) as update:
            yield update

    @contextlib.asynccontextmanager
    async def renew(self, manifest: WeightManifest) -> AsyncIterator[WeightUpdate]:
        """What replaces every tensor by exactly `manifest`'s version, from a copy that was made after the present one.

        A new copy begins with a snapshot.
        """
        (await self._open(manifest.run_id)).abandon()
        self._had = self._left = None
        async with self._hold(manifest, exactly=True) as update:
            yield update

    async def model_folder(self, manifest: WeightManifest) -> tuple[WeightManifest, Path]:
        """Advance, and write the version with its config and tokenizer as a Hugging Face folder.

        Returns the version's manifest and the folder's path.
        """
        async with self.advance(manifest) as update:
            weights = self._fetched / WEIGHTS_NAME
            await asyncio.to_thread(write_safetensors, weights, update.tensors, lasting=False)
        source = update.manifest
        if not _model_entries(source):
            source = await self._client.manifest(0)
        resources = {}
        for entry in _model_entries(source):
            resources[entry.name] = await self._fetch(source, entry, self._folder / "resources")
        await asyncio.to_thread(self._write_model, update.manifest, weights, resources)
        return update.manifest, self._folder / "model"

    def close(self) -> None:
        """Leave the shared copy."""
        if self._copies is not None:
            self._copies.close()
        self._copies = None

    # The shared copy

    async def _open(self, run_id: str) -> HostCopies:
        if self._copies is None or self._copies.run_id != run_id:
            self.close()
            self._copies = await asyncio.to_thread(HostCopies, self._copies_folder, run_id)
            self._left = await asyncio.to_thread(self._find_left, run_id)
        return self._copies

    @contextlib.asynccontextmanager
    async def _hold(self, target: WeightManifest, *, exactly: bool) -> AsyncIterator[WeightUpdate]:
        copies = await self._open(target.run_id)
        self._fetched_bytes, self._seconds = 0, {}
        copy, state, manifest = await self._reach(copies, target, exactly=exactly)
        try:
            yield await asyncio.to_thread(self._update, copy, state, manifest)
            self._had = manifest
        finally:
            copy.unlock()

    async def _reach(
        self, copies: HostCopies, target: WeightManifest, *, exactly: bool
    ) -> tuple[HostCopy, CopyState, WeightManifest]:
        """A copy that holds the target, locked for reading; the target may become a newer version, unless `exactly`."""
        waiting_since = time.monotonic()
        afresh = False
        withdrawn: set[str] = set()
        while True:
            copy = await asyncio.to_thread(copies.newest)
            if copy is not None and copy.try_lock(shared=True):
                state = copy.state()
                if state is not None and state.manifest.digest == target.digest:
                    return copy, state, target
                copy.unlock()
                if not exactly and state is not None and state.manifest.digest not in withdrawn:
                    if newer := await self._newer(state.manifest, target):
                        target = newer
                        continue
                    withdrawn.add(state.manifest.digest)
            if copies.try_turn():
                try:
                    afresh = not await self._build(copies, copy, target, afresh=afresh)
                finally:
                    copies.leave_turn()
                waiting_since = time.monotonic()
            else:
                copies.break_stuck_turn(time.monotonic() - waiting_since)
                await asyncio.sleep(LOOK_S)

    async def _newer(self, held: WeightManifest, target: WeightManifest) -> WeightManifest | None:
        """What the host holds, if it is newer than the target and still published: nobody takes the host back."""
        if held.weight_version <= target.weight_version:
            return None
        try:
            published = await self._client.manifest(held.weight_version)
        except VersionNotFoundError:  # the learner went back
            return None
        return published if published.digest == held.digest else None

    async def _build(self, copies: HostCopies, copy: HostCopy | None, target: WeightManifest, *, afresh: bool) -> bool:
        """Fetch what leads to the target, and make the copy (a new one, where there is none) hold it.

        `afresh`: from a snapshot, whatever is held. False when what is held does not lead to the target: the copy may
        hold nothing then. WeightError when a snapshot does not.
        """
        state = copy.state() if copy else None
        if state is not None and state.manifest.digest == target.digest:
            return True
        left, self._left = None if copy else self._left, None
        held = state.manifest if state else left.manifest if left else None

        def has_base(digest: str) -> bool:
            return copy is not None and copy.has_base(digest)

        clock = StateClock("fetch")
        route = await choose_route(target, None if afresh else held, find=self._client.manifest, has_base=has_base)
        try:
            start = None if route.snapshot is None else await self._fetch_snapshot(route.snapshot)
            changes = [(step, await self._fetch(step, change_of(step), self._fetched)) for step in route.changes]
            self._fetched_bytes = route.size_bytes
            await _change(copies, copy, state, _Plan(target, start or left, changes, clock))
        except WeightError as error:
            if route.snapshot is not None:
                raise
            log.warning("weight_changes_refused", weight_version=target.weight_version, reason=error.message)
            return False
        finally:
            self._seconds = clock.seconds()
            await asyncio.to_thread(_empty, self._fetched)
        return True

    def _update(self, copy: HostCopy, state: CopyState, manifest: WeightManifest) -> WeightUpdate:
        tensors = {name: _read_only(tensor) for name, tensor in copy.tensors(manifest.tensors).items()}
        patches = None
        if self._had is not None and self._had.digest == manifest.digest:
            patches = []
        elif self._had is not None and (found := copy.positions_since(self._had.digest, state)) is not None:
            patches = [Patch(name, places, bits_of(tensors[name])[places]) for name, places in found.items()]
        changed = _differing(self._had, manifest)
        return WeightUpdate(manifest, patches, changed, self._fetched_bytes, tensors, self._seconds)

    # On disk

    @property
    def _fetched(self) -> Path:
        return self._folder / "fetched"

    async def _fetch_snapshot(self, manifest: WeightManifest) -> _Start:
        entry = manifest.file(FileKind.SNAPSHOT)
        assert entry is not None, "a route begins at a version that has one"
        return _Start(manifest, await self._fetch(manifest, entry, self._fetched))

    async def _fetch(self, manifest: WeightManifest, entry: FileEntry, folder: Path) -> Path:
        path = folder / entry.digest
        if await asyncio.to_thread(_is_whole, path, entry):
            return path
        return await self._downloads.fetch(manifest.weight_version, entry, path)

    def _find_left(self, run_id: str) -> _Start | None:
        """The model folder that an earlier process left, if it is of this run; its bytes are verified once used."""
        for name in ("fetched", "resources"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        durable.clear_partial(self._folder)
        model = self._folder / "model"
        try:
            manifest = WeightManifest.model_validate_json((model / MANIFEST_NAME).read_bytes())
            verify_layout(read_safetensors(model / WEIGHTS_NAME), manifest.tensors)
        except FileNotFoundError:
            return None
        except (WeightError, ValidationError) as error:
            log.warning("weight_mirror_discarded", folder=str(model), reason=str(error))
            return None
        return _Start(manifest, model / WEIGHTS_NAME) if manifest.run_id == run_id else None

    def _write_model(self, manifest: WeightManifest, weights: Path, resources: Mapping[str, Path]) -> None:
        with durable.new_folder(self._folder / "model") as folder:
            for name, source in resources.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / name)
            weights.replace(folder / WEIGHTS_NAME)
            durable.write_file(folder / MANIFEST_NAME, manifest.model_dump_json())


async def _change(copies: HostCopies, copy: HostCopy | None, state: CopyState | None, plan: _Plan) -> None:
    """Carry the plan out on a copy in that state; do nothing if it is in another one by now."""
    source = await asyncio.to_thread(read_safetensors, plan.start.weights) if plan.start else None
    if source is not None and (copy is None or copy.size_bytes != size_of(source)):
        copy, state = await asyncio.to_thread(copies.create, size_of(source)), None
    elif copy is None or not await _lock_to_change(copy):
        copies.abandon()
        return
    try:
        if copy.state() == state:
            await _to_its_end(functools.partial(_carry_out, plan, copy, state, source))
    finally:
        copy.unlock()


async def _lock_to_change(copy: HostCopy) -> bool:
    """Take the exclusive lock; False when a process that reads the copy was stopped, or does not end."""
    started = time.monotonic()
    while not copy.try_lock(shared=False):
        if is_stuck(time.monotonic() - started, copy.has_stopped_user):
            log.warning("weight_copy_abandoned", folder=str(copy.folder))
            return False
        await asyncio.sleep(LOOK_S)
    return True


async def _to_its_end(work: Callable[[], None]) -> None:
    """Run it in a thread; when this is cancelled, wait for the end before the lock is given up."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        raise


def _carry_out(plan: _Plan, copy: HostCopy, state: CopyState | None, source: Tensors | None) -> None:
    """Change the bytes, verify them, and say what they are. Any error leaves a copy that holds nothing."""
    copy.forget()
    plan.clock.enter("decode")
    patches: list[Patch] = []
    if source is None:
        assert state is not None, "a plan without a start changes what is held"
        tensors = copy.tensors(state.manifest.tensors)
    else:
        assert plan.start is not None
        tensors = copy.fill(source)
        copy.keep_base(plan.start.manifest.digest, plan.start.weights)
    for step, path in plan.changes:
        patches += apply_change(change_of(step).kind, path, tensors, set(tensors), copy.base_of(step))
    if plan.changes and change_of(plan.changes[-1][0]).kind is FileKind.DELTA:
        copy.drop_bases()
    plan.clock.enter("digest")
    before = state.manifest if state is not None and source is None else None
    unchanged = tensors.keys() - {each.name for each in patches} - _differing(before, plan.target)
    verify_tensors(tensors, plan.target.tensors, known=unchanged)
    steps: tuple[Step, ...] = ()
    if before is not None and state is not None:
        steps = (*state.steps, copy.add_step(before.digest, patches, tensors))
    copy.remember(CopyState(manifest=plan.target, steps=steps))


def _read_only(tensor: RawTensor) -> RawTensor:
    data = tensor.data.view()
    data.flags.writeable = False
    return RawTensor(tensor.dtype, tensor.shape, data)


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
