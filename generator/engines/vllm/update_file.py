"""Writes a weight update to the safetensors file that the worker processes read (`generator.engines.vllm.worker`)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest, layerwise_groups

from generator.engines.vllm.handover import INDICES, VALUES
from services.tensors import RawTensor, write_safetensors

if TYPE_CHECKING:
    from services.weights.mirror import WeightUpdate


def create_handover_folder(cache: Path | None) -> Path:
    """An empty folder for update files; deletes what a killed process left in the cache."""
    if cache is None:
        return Path(tempfile.mkdtemp(prefix="sept-"))
    folder = cache / "handover"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_update(update: WeightUpdate, path: Path, *, patchable: Collection[str]) -> WeightTransferUpdateRequest:
    """Write the update: `patchable` tensors as patches, or whole where that is smaller; for the others, all tensors of
    their decoder layer, which reloads as a whole.
    """
    patches: dict[str, RawTensor] = {}
    whole: dict[str, RawTensor] = {}
    shapes: dict[str, list[int]] = {}
    replaced: list[str] = []
    positions = changed_positions(update)
    for group in layerwise_groups(list(update.tensors)):
        changed = [name for name in group if name in update.changed]
        if not changed:
            continue
        if positions is None or not set(changed) <= set(patchable):
            whole |= {name: update.tensors[name] for name in group}
            continue
        for name in changed:
            patch = _patch_of(name, update.tensors[name], positions[name])
            if patch is None:
                whole[name] = update.tensors[name]
                replaced.append(name)
            else:
                patches |= patch
                shapes[name] = list(update.tensors[name].shape)
    write_safetensors(path, patches | whole, lasting=False)
    return WeightTransferUpdateRequest({"path": str(path), "patched_shapes": shapes, "replaced": replaced})


def changed_positions(update: WeightUpdate) -> dict[str, NDArray[np.int64]] | None:
    """Flat positions of what changed, ascending, by tensor; None after a snapshot."""
    if update.patches is None:
        return None
    parts: dict[str, list[NDArray[np.int64]]] = {}
    for patch in update.patches:
        parts.setdefault(patch.name, []).append(patch.indices)
    # a chain of deltas may touch an element twice
    return {name: found[0] if len(found) == 1 else np.unique(np.concatenate(found)) for name, found in parts.items()}


def _patch_of(name: str, tensor: RawTensor, positions: NDArray[np.int64]) -> dict[str, RawTensor] | None:
    """Positions and new values as tensors; None where the tensor itself takes fewer bytes."""
    elements = tensor.nbytes // tensor.item_bytes
    narrow = elements <= np.iinfo(np.int32).max
    if positions.size * ((4 if narrow else 8) + tensor.item_bytes) >= tensor.nbytes:
        return None
    values = tensor.data.view(f"<u{tensor.item_bytes}")[positions]
    places = positions.astype("<i4" if narrow else "<i8")
    return {
        INDICES + name: RawTensor("I32" if narrow else "I64", positions.shape, places.view(np.uint8)),
        VALUES + name: RawTensor(tensor.dtype, positions.shape, values.view(np.uint8)),
    }
