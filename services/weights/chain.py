"""Makes one version of another by applying patches to tensors, and verifies the result against a manifest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from services.contracts import FileEntry, FileKind, TensorEntry, WeightManifest
from services.errors import DigestError, WeightError
from services.tensors import RawTensor, Tensors, digest_bytes, on_all_cores, read_safetensors
from services.weights import adapters, delta


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


def verify_tensors(tensors: Tensors, entries: Sequence[TensorEntry], known: Collection[str] = ()) -> None:
    """WeightError unless names, types and shapes are those of the entries; DigestError unless the bytes are, too.

    `known`: names of tensors whose bytes have been verified already and have not changed since.
    """
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
    names = [name for name in expected if name not in known]
    for name, digest in zip(names, on_all_cores(digest_bytes, [tensors[name].data for name in names]), strict=True):
        if digest != expected[name].digest:
            raise DigestError(f"tensor {name!r} does not have the digest of the manifest")
