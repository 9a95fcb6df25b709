"""Pairs of versions of any element type, and a delta applied."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.tensors import ITEM_BYTES, RawTensor
from services.weights.delta import apply, decode

Version = Mapping[str, RawTensor]


def bf16(values: NDArray[np.float32]) -> RawTensor:
    """Rounds to nearest; [N] float32 to N BF16 elements."""
    rounded = (values.astype("<f4").view("<u4") + np.uint32(0x8000)) >> np.uint32(16)
    return RawTensor("BF16", values.shape, rounded.astype("<u2").reshape(-1).view(np.uint8))


def patched(parent: Version, delta: bytes) -> dict[str, RawTensor]:
    result = {name: RawTensor(old.dtype, old.shape, old.data.copy()) for name, old in parent.items()}
    for patch in decode(parent, delta):
        apply(patch, result[patch.name].data)
    return result


@st.composite
def versions(draw: st.DrawFn) -> tuple[dict[str, RawTensor], dict[str, RawTensor]]:
    parent, child = {}, {}
    for at, dtype in enumerate(draw(st.lists(st.sampled_from(sorted(ITEM_BYTES)), min_size=1, max_size=6))):
        size = draw(st.integers(0, 80))
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        old = rng.integers(0, 256, size * ITEM_BYTES[dtype], dtype=np.uint8)
        changed = rng.random(old.size) < draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
        new = np.where(changed, rng.integers(0, 256, old.size, dtype=np.uint8), old)
        parent[f"{at}"], child[f"{at}"] = RawTensor(dtype, (size,), old), RawTensor(dtype, (size,), new)
    return parent, child
