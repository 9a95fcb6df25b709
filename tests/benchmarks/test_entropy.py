from __future__ import annotations

import numpy as np
import pytest

from benchmarks.entropy import entropy_bound_bytes
from services.tensors import RawTensor


def elements(*bits: int) -> dict[str, RawTensor]:
    return {"w": RawTensor("BF16", (len(bits),), np.array(bits, "<u2").view(np.uint8))}


def test_no_change_needs_nothing() -> None:
    assert entropy_bound_bytes(elements(1, 2, 3), elements(1, 2, 3)) == 0


def test_positions_and_steps_are_counted_per_class() -> None:
    """Of 16 equal elements 8 change, half of them up and half down: 16 bits for positions, 8 for steps."""
    old = elements(*[0x3F80] * 16, 0x4080)
    new = elements(*[0x3F80] * 8, *[0x3F81] * 4, *[0x3F7F] * 4, 0x4080)
    assert entropy_bound_bytes(old, new) == pytest.approx(3)


def test_a_class_that_changed_alike_everywhere_needs_nothing() -> None:
    assert entropy_bound_bytes(elements(*[0x3F80] * 9), elements(*[0x3F83] * 9)) == 0


def test_crossing_zero_counts_floats_not_bits() -> None:
    """From both zeros' neighbours: steps of -1 and +2 in the order of the floats, one of each per class of two."""
    assert entropy_bound_bytes(elements(0x0000, 0x8000), elements(0x8000, 0x0001)) == pytest.approx(0.25)
