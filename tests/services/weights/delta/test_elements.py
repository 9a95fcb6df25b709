"""Bits of every element type: distances along the number line and back, exactly."""

from __future__ import annotations

import numpy as np
import pytest

from services.contracts import TensorEntry
from services.tensors import ITEM_BYTES
from services.weights.delta.elements import KINDS
from services.weights.delta.streams import FrameReader, FrameWriter


def test_every_element_type_of_the_contract_is_known() -> None:
    names = set(TensorEntry.model_json_schema()["properties"]["dtype"]["enum"])
    assert set(KINDS) == set(ITEM_BYTES) == names
    assert all(kind.width == 8 * ITEM_BYTES[name] for name, kind in KINDS.items())


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8"])
def test_every_pair_of_byte_sized_elements_survives(dtype: str) -> None:
    kind = KINDS[dtype]
    old, new = (side.reshape(-1) for side in np.meshgrid(np.arange(256, dtype="u1"), np.arange(256, dtype="u1")))
    old, new = old[old != new], new[old != new]
    distance = kind.distance(old, new)
    assert distance.dtype == np.uint8
    np.testing.assert_array_equal(kind.move(old, distance), new)


@pytest.mark.parametrize("dtype", sorted(KINDS))
def test_farthest_elements_survive(dtype: str) -> None:
    kind = KINDS[dtype]
    extremes = np.array([0, 1, (1 << (kind.width - 1)) - 1, 1 << (kind.width - 1), (1 << kind.width) - 1], kind.dtype)
    old, new = (side.reshape(-1) for side in np.meshgrid(extremes, extremes))
    old, new = old[old != new], new[old != new]
    distance = kind.distance(old, new)
    writer = FrameWriter()
    writer.write_integers(distance >> 1, kind.precision, (distance & 1).astype(np.uint8))
    halves, backward = FrameReader(writer.finish()).read_integers(old.size, kind.precision, flagged=True)
    np.testing.assert_array_equal((halves.astype(kind.dtype) << 1) | backward, distance)
    np.testing.assert_array_equal(kind.move(old, distance), new)


@pytest.mark.parametrize(
    ("old", "new", "steps"),
    [
        (0x3F80, 0x3F81, 1),  # 1.0 to the next float up
        (0xBF80, 0xBF81, 1),  # -1.0 to the next float down: away from zero as well
        (0x3F80, 0x3F7F, -1),
        (0x0000, 0x8000, -1),  # 0.0 to -0.0
        (0x8000, 0x0000, -1),
        (0x0001, 0x8001, -3),  # smallest positive to smallest negative
        (0x7F80, 0x7FC1, 0x41),  # infinity to a NaN with a payload
    ],
)
def test_distance_counts_floats_away_from_zero(old: int, new: int, steps: int) -> None:
    distance = int(KINDS["BF16"].distance(np.array([old], "<u2"), np.array([new], "<u2"))[0])
    assert (-1 if distance & 1 else 1) * ((distance >> 1) + 1) == steps
