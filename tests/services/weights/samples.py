"""Small versions of a pretend model, for the tests of this folder and of the endpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from services.weights.tensors import ITEM_BYTES, RawTensor

SHAPES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "model.embed_tokens.weight": ("BF16", (64, 16)),
    "model.layers.0.mlp.weight": ("BF16", (16, 48)),
    "model.layers.0.norm.weight": ("F32", (16,)),
    "model.layers.0.scale": ("F8_E4M3", (7,)),
    "model.layers.0.steps": ("I64", ()),
}


def tensor(dtype: str, shape: tuple[int, ...], seed: int = 0) -> RawTensor:
    """Random bits; any bit pattern is a legal element here, NaN included."""
    count = math.prod(shape) * ITEM_BYTES[dtype]
    return RawTensor(dtype, shape, np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8))


def first_version(seed: int = 0) -> dict[str, RawTensor]:
    return {name: tensor(dtype, shape, seed + at) for at, (name, (dtype, shape)) in enumerate(SHAPES.items())}


def next_version(before: Mapping[str, RawTensor], seed: int) -> dict[str, RawTensor]:
    """Flips a few bytes of two tensors; the others stay as they are."""
    after = dict(before)
    rng = np.random.default_rng(seed)
    for name in ("model.embed_tokens.weight", "model.layers.0.norm.weight"):
        data = before[name].data.copy()
        data[rng.integers(0, data.size, 3)] ^= rng.integers(1, 256, 3, dtype=np.uint8)
        after[name] = RawTensor(before[name].dtype, before[name].shape, data)
    return after


def bits(tensors: Mapping[str, RawTensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What two versions are compared by."""
    return {name: (tensor.dtype, tensor.shape, tensor.data.tobytes()) for name, tensor in tensors.items()}
