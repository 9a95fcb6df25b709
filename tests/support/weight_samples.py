"""Small versions of a pretend model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from services.tensors import ITEM_BYTES, RawTensor, Tensors
from services.weights.adapters import Adapter, merge, pack
from services.weights.delta.plain import Flips
from services.weights.delta.sections import bits_of
from services.weights.publisher import WeightPublisher

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


def flips_between(old: Tensors, new: Tensors) -> list[Flips]:
    """What makes `new` of `old`, as the learner finds it."""
    flips = []
    for name in sorted(old):
        flipped = bits_of(old[name]) ^ bits_of(new[name])
        positions = np.flatnonzero(flipped)
        flips.append(Flips(name, positions, flipped[positions]))
    return flips


def publish_versions(store: WeightPublisher, count: int) -> list[Tensors]:
    """Publish versions 0 .. count - 1 and return them."""
    history: list[Tensors] = [first_version()]
    store.publish(0, history[0])
    for version in range(1, count):
        history.append(next_version(history[-1], version))
        store.publish(version, history[-1])
    return history


ADAPTED = ("model.embed_tokens.weight", "model.layers.0.mlp.weight")


def base_version() -> dict[str, RawTensor]:
    """A first version whose matrices are numbers."""
    base = first_version()
    for name in ADAPTED:
        values = np.random.default_rng(1).standard_normal(base[name].nbytes // 2, dtype=np.float32)
        base[name] = RawTensor("BF16", base[name].shape, (values.view("<u4") >> 16).astype("<u2").view(np.uint8))
    return base


def adapted_version(base: Mapping[str, RawTensor], seed: int) -> tuple[dict[str, RawTensor], dict[str, RawTensor]]:
    """(A version that adapters make of the base, those adapters as they travel)."""
    rng = np.random.default_rng(seed)
    adapters = {}
    for name in ADAPTED:
        rows, columns = base[name].shape
        left, right = (rng.integers(-(1 << 14), 1 << 14, s).astype("<i2") for s in ((rows, 3), (3, columns)))
        adapters[name] = Adapter(left, right, scale=0.1 * 2.0**-28)
    merged = {name: merge(base[name], adapter) for name, adapter in adapters.items()}
    return {**base, **merged}, pack(adapters)


def bits(tensors: Mapping[str, RawTensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What two versions are compared by."""
    return {name: (tensor.dtype, tensor.shape, tensor.data.tobytes()) for name, tensor in tensors.items()}
