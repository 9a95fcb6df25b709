"""One version of the weights in memory that the generators of a host share, and what they know of it.

The memory is a file without a name (memfd): no disk is written, and the kernel frees it with the last process that has
it open. Other processes of the same user open it through that process' /proc/<pid>/fd.

folder/places/<pid>-<fd>   where the memory is open
folder/state.json          what it holds; absent while its bytes change, also after their writer was killed
folder/steps/              positions that the last changes touched, for generators that are a few behind
folder/base-<digest>       the snapshot of the version with this digest, which adapters are applied to

The memory is locked exclusively while its bytes change, and shared while somebody reads them.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from services import durable
from services.contracts import Digest, TensorEntry, WeightManifest
from services.errors import WeightError
from services.tensors import ITEM_BYTES, RawTensor, Tensors, digest_file, read_safetensors, write_safetensors
from services.weights.delta import Patch
from services.weights.delta.sections import bits_of

KEPT_STEPS = 4
"""A generator that is more changes behind replaces every tensor."""
MEMORY_PREFIX = "sept-"

log = structlog.get_logger()


class Step(BaseModel):
    """A change of the copy. Steps follow each other without a gap, up to what the copy holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: Digest
    """Of the version that it changed."""
    digest: Digest
    """Of the file in the folder of steps that has its name: positions (I64) in each changed tensor, or a bit for each
    of its elements (U8)."""


class CopyState(BaseModel):
    """What a copy holds, verified."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: WeightManifest
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A process that has a memory open, and under which number."""

    pid: int
    handle: int

    @property
    def name(self) -> str:
        return f"{self.pid}-{self.handle}"

    @property
    def link(self) -> Path:
        return Path(f"/proc/{self.pid}/fd/{self.handle}")

    def holds(self, name: str) -> bool:
        """Whether it still is that memory: the process may have ended, and its id been given to another."""
        with contextlib.suppress(OSError):
            return str(self.link.readlink()) == f"/memfd:{MEMORY_PREFIX}{name} (deleted)"
        return False

    def register(self, folder: Path) -> bool:
        """Tell others; False when the copy's folder is gone."""
        with contextlib.suppress(FileNotFoundError):
            (folder / "places" / self.name).touch()
            return True
        return False


class HostCopy:
    """One memory that holds a version; `close` it.

    Its lock counts for this object, also against others in the same process. Only what is said to need the exclusive
    lock changes anything that others read.
    """

    def __init__(self, folder: Path, handle: int) -> None:
        self.folder = folder
        self.size_bytes = os.fstat(handle).st_size
        self._handle = handle
        self._bytes = np.frombuffer(mmap.mmap(handle, self.size_bytes), np.uint8)
        self._place = folder / "places" / Place(os.getpid(), handle).name

    @property
    def name(self) -> str:
        return self.folder.name

    def tensors(self, entries: Sequence[TensorEntry]) -> dict[str, RawTensor]:
        """Views of the memory by the layout of these entries; to be written to with the exclusive lock only."""
        return _views(self._bytes, {entry.name: (entry.dtype, entry.shape) for entry in entries})

    def fill(self, source: Tensors) -> dict[str, RawTensor]:
        """Copy the tensors into the memory, which must have their size. Needs the exclusive lock."""
        views = _views(self._bytes, _layout_of(source))
        for name, tensor in source.items():
            views[name].data[:] = tensor.data
        return views

    def try_lock(self, *, shared: bool) -> bool:
        """False while the memory changes, or for an exclusive lock while somebody reads it."""
        return durable.try_lock(self._handle, shared=shared)

    def unlock(self) -> None:
        durable.unlock(self._handle)

    def state(self) -> CopyState | None:
        """What the memory holds, as long as one of the locks is held; without one it may change at once."""
        try:
            return CopyState.model_validate_json((self.folder / "state.json").read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            log.warning("weight_copy_discarded", folder=str(self.folder), reason=str(error))
            return None

    def forget(self) -> None:
        """To be called before bytes change: until `remember`, nobody trusts them. Needs the exclusive lock."""
        (self.folder / "state.json").unlink(missing_ok=True)

    def remember(self, state: CopyState) -> None:
        """The memory holds this, verified. Needs the exclusive lock."""
        steps = state.steps[-KEPT_STEPS:]
        _write(self.folder / "state.json", state.model_copy(update={"steps": steps}))
        kept = {step.digest for step in steps}
        for path in (self.folder / "steps").iterdir():
            if path.name not in kept:
                path.unlink()

    def add_step(self, before: str, patches: Iterable[Patch], tensors: Tensors) -> Step:
        """Write down what the patches changed, for `positions_since`. Needs the exclusive lock."""
        packed = {name: _packed(places, bits_of(tensors[name]).size) for name, places in _positions(patches).items()}
        path = self.folder / "steps" / "new"
        write_safetensors(path, packed, lasting=False)
        step = Step(before=before, digest=digest_file(path))
        path.rename(path.with_name(step.digest))
        return step

    def positions_since(self, digest: str, state: CopyState) -> dict[str, NDArray[np.int64]] | None:
        """Ascending positions of each tensor that may differ from the version with that digest; None: not known.

        `state` is the present one: one of the locks is needed.
        """
        first = max((at for at, step in enumerate(state.steps) if step.before == digest), default=None)
        if first is None:
            return None
        sizes = {entry.name: math.prod(entry.shape) for entry in state.manifest.tensors}
        found: dict[str, list[NDArray[np.int64]]] = {}
        for step in state.steps[first:]:
            path = self.folder / "steps" / step.digest
            if not path.exists() or digest_file(path) != step.digest:
                return None
            for name, packed in read_safetensors(path).items():
                found.setdefault(name, []).append(_unpacked(packed, sizes[name]))
        return {name: _union(parts) for name, parts in found.items()}

    def keep_base(self, digest: str, snapshot: Path) -> None:
        """Adapters may follow that apply to the version with that digest. Needs the exclusive lock."""
        self.drop_bases()
        durable.link_or_copy(snapshot, self._base_path(digest))

    def has_base(self, digest: str) -> bool:
        """Whether the version with that digest is kept for adapters."""
        return self._base_path(digest).exists()

    def base_of(self, step: WeightManifest) -> Tensors | None:
        """What the adapters of that version apply to; None where it is not kept."""
        path = self._base_path(str(step.parent_digest))
        return read_safetensors(path) if path.exists() else None

    def _base_path(self, digest: str) -> Path:
        return self.folder / f"base-{digest}"

    def drop_bases(self) -> None:
        """No adapters are expected any more. Needs the exclusive lock."""
        for path in self.folder.glob("base-*"):
            path.unlink()

    def has_stopped_user(self) -> bool:
        """Whether a process that has the memory open was stopped, by a signal or by a debugger."""
        return any(is_stopped(place.pid) for place in places_of(self.folder))

    def close(self) -> None:
        """Leave the memory; the last one who does removes the folder."""
        self.unlock()  # the mapping keeps the lock as long as there are views of it
        self._place.unlink(missing_ok=True)
        os.close(self._handle)
        if not is_in_use(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)


def size_of(tensors: Tensors) -> int:
    """Bytes of a memory that holds them."""
    return max(1, sum(tensor.nbytes for tensor in tensors.values()))


def is_in_use(folder: Path) -> bool:
    """Whether a process has the copy's memory open."""
    return any(place.holds(folder.name) for place in places_of(folder))


def is_stopped(pid: int) -> bool:
    """Whether the process exists and was stopped (SIGSTOP, a debugger)."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    return False


def places_of(folder: Path) -> list[Place]:
    with contextlib.suppress(FileNotFoundError):
        return [Place(*map(int, path.name.split("-"))) for path in (folder / "places").iterdir()]
    return []


def _write(path: Path, content: BaseModel) -> None:
    try:
        durable.write_file(path, content.model_dump_json())
    except FileNotFoundError as error:  # another process took this one for ended
        raise WeightError(
            "the shared copy of the weights is gone", hint="it is made again with the next version"
        ) from error


# Layout


def _layout_of(tensors: Tensors) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _views(memory: NDArray[np.uint8], layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, RawTensor]:
    """One after the other, widest elements first, so that every tensor is aligned to its element."""
    views, reached = {}, 0
    for name in sorted(layout, key=lambda name: (-ITEM_BYTES[layout[name][0]], name)):
        dtype, shape = layout[name]
        end = reached + math.prod(shape) * ITEM_BYTES[dtype]
        views[name] = RawTensor(dtype, shape, memory[reached:end])
        reached = end
    return views


# Positions


def _positions(patches: Iterable[Patch]) -> dict[str, NDArray[np.int64]]:
    """Of each tensor; a chain of changes may patch one several times."""
    found: dict[str, list[NDArray[np.int64]]] = {}
    for patch in patches:
        found.setdefault(patch.name, []).append(patch.indices)
    return {name: _union(parts) for name, parts in found.items()}


def _union(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))


def _packed(positions: NDArray[np.int64], size: int) -> RawTensor:
    """The positions, or a bit for each of the tensor's elements where that is smaller."""
    if positions.nbytes <= -(-size // 8):
        return RawTensor("I64", positions.shape, np.ascontiguousarray(positions, "<i8").view(np.uint8))
    mask = np.zeros(size, bool)
    mask[positions] = True
    packed = np.packbits(mask)
    return RawTensor("U8", packed.shape, packed)


def _unpacked(packed: RawTensor, size: int) -> NDArray[np.int64]:
    if packed.dtype == "I64":
        return packed.data.view("<i8")
    return np.flatnonzero(np.unpackbits(packed.data, count=size))
