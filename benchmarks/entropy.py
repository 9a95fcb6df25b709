"""How few bytes a delta could take if changes within an exponent class were independent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.tensors import Tensors
from services.weights.delta.elements import KINDS, Bits


def entropy_bound_bytes(parent: Tensors, child: Tensors) -> float:
    """Order-0 bound over all tensors, per exponent class of the old value.

    Sum over classes of N H(k / N) for the positions, N elements of which k changed and H the binary entropy, plus
    k times the empirical entropy of new - old, both counted as integers in the order of the floats.
    """
    members: dict[tuple[str, int], int] = {}
    changes: dict[tuple[str, int], list[NDArray[np.int64]]] = {}
    for name, old_tensor in parent.items():
        kind = KINDS[old_tensor.dtype]
        old, new = old_tensor.data.view(kind.dtype), child[name].data.view(kind.dtype)
        classes = kind.classes(old)
        changed = np.flatnonzero(old != new)
        steps = _ordered(new[changed], kind.width) - _ordered(old[changed], kind.width)
        for number, count in enumerate(np.bincount(classes, minlength=256).tolist()):
            key = (old_tensor.dtype, number)
            members[key] = members.get(key, 0) + count
            changes.setdefault(key, []).append(steps[classes[changed] == number])
    return sum(_class_bits(members[key], np.concatenate(steps)) for key, steps in changes.items()) / 8


def _ordered(bits: Bits, width: int) -> NDArray[np.int64]:
    """Integers in the order of the floats, for elements of at most 32 bits."""
    sign = 1 << (width - 1)
    wide = bits.astype(np.int64)
    return np.where(wide >= sign, sign - 1 - wide, wide)


def _class_bits(members: int, steps: NDArray[np.int64]) -> float:
    positions = _entropy_bits(np.array([steps.size, members - steps.size]))
    return positions + _entropy_bits(np.unique(steps, return_counts=True)[1])


def _entropy_bits(counts: NDArray[np.int64]) -> float:
    """Bits for all events together when the counts are known: sum of n log2(total / n)."""
    present = counts[counts > 0].astype(np.float64)
    return float((present * np.log2(present.sum() / present)).sum())
