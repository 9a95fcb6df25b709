"""Mirrors of generators without their engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from services.contracts import WeightManifest
from services.tensors import RawTensor
from services.weights import delta
from services.weights.host_copy import HostCopy
from services.weights.mirror import WeightMirror, WeightUpdate


async def advanced(mirror: WeightMirror, manifest: WeightManifest) -> WeightUpdate:
    """The update, with tensors that stay as they were while it was held."""
    async with mirror.advance(manifest) as update:
        return replace(update, tensors=copied(update.tensors))


def copied(tensors: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    return {name: RawTensor(tensor.dtype, tensor.shape, tensor.data.copy()) for name, tensor in tensors.items()}


def as_served(before: Mapping[str, RawTensor], update: WeightUpdate) -> dict[str, RawTensor]:
    """What an engine holds that has laid the update over `before`."""
    if update.patches is None:
        return dict(update.tensors)
    after = copied(before)
    for change in update.patches:
        delta.apply(change, after[change.name].data)
    return after


def shared_copy(mirror: WeightMirror) -> HostCopy:
    """The copy that the mirror uses."""
    assert mirror._copies is not None
    copy = mirror._copies.newest()
    assert copy is not None
    return copy
