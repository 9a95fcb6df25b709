"""The wire form of low-rank adapters, and the weights that they make of a base version.

Sent are B [out, R] and A [R, in] of each layer, as integers of at most 15 bits with sign, and a scale s. W0: the base.

    d  = float32(s * (B A)) + 0          B A in float64
    W' = wire type(float32(W0) + d)      every step rounded to nearest, ties to even

B A sums R products of at most 2**28: while R < 2**25 that is exact in float64, whatever the order, the library and the
device. So a learner in torch and a mirror in numpy make the same bits. Adding 0 makes every zero positive: its sign
would depend on the order. A W0 of -0 and one of 0 give the same W'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.errors import WeightError
from services.tensors import RawTensor, Tensors
from services.weights.delta import Patch
from services.weights.delta.sections import bits_of

FRACTION_BITS = 14
"""Integers are at most 2**FRACTION_BITS in magnitude."""

LEFT, RIGHT, SCALE = ".lora_B", ".lora_A", ".lora_scale"
"""Suffixes of the weight's name in the file of adapters."""

BLOCK_ELEMENTS = 1 << 18
"""Merged at a time: float64 products of so many stay in a processor's cache."""

NUMPY_DTYPES: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """What is added to one layer's weight: scale * left @ right."""

    left: NDArray[np.int16]
    """B [out, R]."""
    right: NDArray[np.int16]
    """A [R, in]."""
    scale: float


def pack(adapters: Mapping[str, Adapter]) -> dict[str, RawTensor]:
    """The tensors of a file of adapters, by the names of the weights that they change."""
    packed = {}
    for name, adapter in adapters.items():
        packed[name + LEFT] = _raw("I16", adapter.left.astype("<i2"))
        packed[name + RIGHT] = _raw("I16", adapter.right.astype("<i2"))
        packed[name + SCALE] = _raw("F64", np.array(adapter.scale, "<f8"))
    return packed


def adapted(packed: Tensors) -> list[str]:
    """Names of the weights that these adapters change, sorted."""
    return sorted(name.removesuffix(SCALE) for name in packed if name.endswith(SCALE))


def decode(base: Tensors, held: Tensors, packed: Tensors) -> Iterator[Patch]:
    """What turns `held` into `base` with the adapters: one patch per tensor that differs, each made when asked for.

    `held` may be `base` itself, patched on the way. WeightError when these are not adapters of a base like this.
    """
    names = adapted(packed)
    if len(packed) != 3 * len(names):
        raise WeightError(f"{len(packed)} tensors are not the adapters of {len(names)} weights")
    for name in names:
        merged = bits_of(merge(_weight(base, name), _unpack(packed, name)))
        old = bits_of(_weight(held, name))
        if old.size != merged.size or old.dtype != merged.dtype:
            raise WeightError(f"tensor {name!r} is not the same in what is held and in the adapters' base")
        indices = np.flatnonzero(old != merged)
        if indices.size:
            yield Patch(name, indices, merged[indices])


def merge(weight: RawTensor, adapter: Adapter) -> RawTensor:
    """W' of W0 = `weight`, in its type; WeightError when the adapter's shape is another."""
    rank = adapter.right.shape[0]
    if (adapter.left.shape, adapter.right.shape) != ((weight.shape[0], rank), (rank, weight.shape[1])):
        raise WeightError(f"adapters {adapter.left.shape} and {adapter.right.shape} do not fit {weight.shape}")
    rows, columns = weight.shape
    step = max(1, BLOCK_ELEMENTS // max(1, columns))
    row_bytes = columns * weight.item_bytes
    merged = np.empty(weight.nbytes, np.uint8)
    right = adapter.right.astype(np.float64)
    # what overflows or is no number comes from a file that no digest will confirm
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, rows, step):
            block = slice(start * row_bytes, (start + step) * row_bytes)
            product = adapter.left[start : start + step].astype(np.float64) @ right
            product *= adapter.scale
            values = product.astype(np.float32).reshape(-1)
            values += np.float32(0)
            values += _floats(weight.data[block], weight.dtype)
            merged[block] = _rounded(values, weight.dtype)
    return RawTensor(weight.dtype, weight.shape, merged)


def _weight(tensors: Tensors, name: str) -> RawTensor:
    weight = tensors.get(name)
    if weight is None or len(weight.shape) != 2 or weight.dtype not in (*NUMPY_DTYPES, "BF16"):
        raise WeightError(f"there is no matrix {name[:80]!r} for adapters to change")
    return weight


def _unpack(packed: Tensors, name: str) -> Adapter:
    left, right, scale = (packed.get(name + part) for part in (LEFT, RIGHT, SCALE))
    if left is None or right is None or scale is None:
        raise WeightError(f"the adapter of {name[:80]!r} is not whole")
    kinds = [(part.dtype, len(part.shape)) for part in (left, right, scale)]
    if kinds != [("I16", 2), ("I16", 2), ("F64", 0)]:
        raise WeightError(f"the adapter of {name[:80]!r} is of types and dimensions {kinds}")
    return Adapter(
        left.data.view("<i2").reshape(left.shape),
        right.data.view("<i2").reshape(right.shape),
        float(scale.data.view("<f8")[0]),
    )


def _raw(dtype: str, values: NDArray[Any]) -> RawTensor:
    return RawTensor(dtype, values.shape, np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def _floats(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return data.view(NUMPY_DTYPES[dtype]).astype(np.float32)


def _rounded(values: NDArray[np.float32], dtype: str) -> NDArray[np.uint8]:
    if dtype != "BF16":
        return values.astype(NUMPY_DTYPES[dtype]).view(np.uint8)
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype("<u2").view(np.uint8)
