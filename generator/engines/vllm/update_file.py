"""Writes a weight update to the safetensors file that the worker processes read (`generator.engines.vllm.worker`)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest, layerwise_groups

from generator.engines.vllm.handover import INDICES, VALUES
from services.tensors import RawTensor, write_safetensors

if TYPE_CHECKING:
    from services.weights.mirror import WeightUpdate

PATCHABLE_BITS = {"BF16": (0x7F80, 0x007F), "F16": (0x7C00, 0x03FF), "F32": (0x7F800000, 0x007FFFFF)}
"""Masks of exponent and fraction of the types that accept sparse patches; vLLM marks unchanged elements by NaN."""


def create_handover_folder(cache: Path | None) -> Path:
    """An empty folder for update files; deletes what a killed process left in the cache."""
    if cache is None:
        return Path(tempfile.mkdtemp(prefix="sept-"))
    folder = cache / "handover"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_update(update: WeightUpdate, path: Path, *, sparse: bool) -> WeightTransferUpdateRequest:
    """Write the update as patches where `sparse` allows and they can express it, else as whole tensors."""
    patches = sparse_patches(update) if sparse else None
    if patches is not None:
        shapes = {name: list(update.tensors[name].shape) for name in update.changed}
        write_safetensors(path, patches, lasting=False)
        return WeightTransferUpdateRequest({"path": str(path), "patched_shapes": shapes})
    write_safetensors(path, changed_groups(update), lasting=False)
    return WeightTransferUpdateRequest({"path": str(path)})


def sparse_patches(update: WeightUpdate) -> dict[str, RawTensor] | None:
    """Positions and new values of what changed, as tensors; None where whole tensors are needed: after a snapshot, for
    types that accept no patches, and for new NaNs.
    """
    if update.patches is None:
        return None
    indices: dict[str, list[np.ndarray[Any, np.dtype[np.int64]]]] = {}
    for patch in update.patches:
        indices.setdefault(patch.name, []).append(patch.indices)
    tensors = {}
    for name, parts in indices.items():
        tensor = update.tensors[name]
        if tensor.dtype not in PATCHABLE_BITS:
            return None
        # a chain of deltas may touch an element twice; the newest value is in the mirror
        positions = parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))
        values = tensor.data.view(f"<u{tensor.item_bytes}")[positions]
        exponent, fraction = PATCHABLE_BITS[tensor.dtype]
        if bool(((values & exponent == exponent) & (values & fraction != 0)).any()):
            return None
        tensors[INDICES + name] = RawTensor("I64", positions.shape, positions.astype("<i8").view(np.uint8))
        tensors[VALUES + name] = RawTensor(tensor.dtype, positions.shape, values.view(np.uint8))
    return tensors


def changed_groups(update: WeightUpdate) -> Mapping[str, RawTensor]:
    """Every tensor of the decoder layers that changed: fused layers reload only as a whole."""
    groups = layerwise_groups(list(update.tensors))
    touched = [group for group in groups if not update.changed.isdisjoint(group)]
    return {name: update.tensors[name] for group in touched for name in group}
