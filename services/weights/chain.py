"""Makes one version of another: chooses the way, applies patches to tensors, verifies the result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.contracts import FileEntry, FileKind, TensorEntry, WeightManifest
from services.errors import DigestError, VersionNotFoundError, WeightError
from services.tensors import RawTensor, Tensors, digest_bytes, on_all_cores, read_safetensors
from services.weights import adapters, delta


@dataclass(frozen=True, slots=True)
class Route:
    """A way to a version: from a snapshot (or from what is held, when None), then deltas or adapters in order."""

    snapshot: WeightManifest | None
    changes: tuple[WeightManifest, ...]
    size_bytes: int


async def choose_route(
    target: WeightManifest,
    held: WeightManifest | None,
    *,
    find: Callable[[int], Awaitable[WeightManifest]],
    has_base: Callable[[str], bool],
) -> Route:
    """Walk from the target to its ancestors until the version held, or until no cheaper route is possible.

    Adapters whose base is here apply to any version held: a generator fetches only the newest ones. `find`: the
    manifest of a version, or VersionNotFoundError, which is also raised when no route is left. `has_base`: whether the
    tensors of the version with that digest are here for adapters.
    """
    changes: list[WeightManifest] = []
    cost = 0
    full: Route | None = None
    step: WeightManifest | None = target
    while step is not None:
        if held is not None and step.digest == held.digest:
            return Route(None, tuple(reversed(changes)), cost)
        snapshot, change = step.file(FileKind.SNAPSHOT), step.change
        if full is None and snapshot is not None:
            full = Route(step, tuple(reversed(changes)), cost + snapshot.size_bytes)
        if change is None or (full is not None and (held is None or cost + change.size_bytes >= full.size_bytes)):
            break
        changes.append(step)
        cost += change.size_bytes
        if change.kind is FileKind.ADAPTERS and held is not None and has_base(str(step.parent_digest)):
            return Route(None, tuple(reversed(changes)), cost)
        step = await _parent(step, held, find)
    if full is None:
        raise VersionNotFoundError(
            f"no snapshot leads to weight version {target.weight_version}", hint="ask for the latest version"
        )
    return full


async def _parent(
    step: WeightManifest, held: WeightManifest | None, find: Callable[[int], Awaitable[WeightManifest]]
) -> WeightManifest | None:
    """The version that the step's change applies to; None when it is retired or replaced."""
    if held is not None and step.parent_digest == held.digest:
        return held
    if step.parent_version is None:
        return None
    try:
        parent = await find(step.parent_version)
    except VersionNotFoundError:
        return None
    return parent if parent.digest == step.parent_digest else None


def change_of(manifest: WeightManifest) -> FileEntry:
    """The file that makes the version of its parent; WeightError where there is only a snapshot."""
    change = manifest.change
    if change is None:
        raise WeightError(f"weight version {manifest.weight_version} has neither delta nor adapters")
    return change


def apply_change(
    kind: FileKind, path: Path, tensors: dict[str, RawTensor], owned: set[str], base: Tensors | None = None
) -> list[delta.Patch]:
    """Turn `tensors`, the parent's, into the version that a file of this kind makes; return the patches, as `patch`.

    Adapters can be applied to any version of the same layout when `base` holds the parent's tensors. The caller
    verifies the result.
    """
    if kind is FileKind.ADAPTERS:
        packed = read_safetensors(path)
        return patch(tensors, adapters.decode(tensors if base is None else base, tensors, packed), owned)
    return patch(tensors, delta.decode(tensors, path.read_bytes()), owned)


def patch(tensors: dict[str, RawTensor], patches: Iterable[delta.Patch], owned: set[str]) -> list[delta.Patch]:
    """Apply the patches to `tensors` one by one and return them.

    Names in `owned` are changed in place. Any other tensor may be shared or a read-only view of a file: it is
    replaced by a private copy first, and its name joins `owned`. So memory holds one copy, whatever the chain's length.
    """
    applied = []
    for change in patches:
        tensor = tensors[change.name]
        if change.name not in owned:
            tensor = tensors[change.name] = RawTensor(tensor.dtype, tensor.shape, tensor.data.copy())
            owned.add(change.name)
        delta.apply(change, tensor.data)
        applied.append(change)
    return applied


def verify_layout(tensors: Tensors, entries: Sequence[TensorEntry]) -> None:
    """WeightError unless names, types and shapes are those of the entries."""
    expected = {entry.name: entry for entry in entries}
    if tensors.keys() != expected.keys():
        strangers = sorted(tensors.keys() ^ expected.keys())
        raise WeightError(f"{len(strangers)} tensors are missing or not in the manifest, first {strangers[0][:80]!r}")
    for name, entry in expected.items():
        tensor = tensors[name]
        if (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape):
            raise WeightError(
                f"tensor {name!r} is {tensor.dtype} {tensor.shape}, the manifest says {entry.dtype} {entry.shape}"
            )


def verify_tensors(tensors: Tensors, entries: Sequence[TensorEntry], known: Collection[str] = ()) -> None:
    """WeightError unless names, types and shapes are those of the entries; DigestError unless the bytes are, too.

    `known`: names of tensors whose bytes have been verified already and have not changed since.
    """
    verify_layout(tensors, entries)
    expected = {entry.name: entry for entry in entries}
    names = [name for name in expected if name not in known]
    for name, digest in zip(names, on_all_cores(digest_bytes, [tensors[name].data for name in names]), strict=True):
        if digest != expected[name].digest:
            raise DigestError(f"tensor {name!r} does not have the digest of the manifest")
