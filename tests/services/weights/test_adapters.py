"""Adapters and their base make the defined bits, and what is no such thing is refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import WeightError
from services.tensors import RawTensor
from services.weights.adapters import LEFT, RIGHT, SCALE, Adapter, decode, merge, pack
from tests.support.weight_samples import adapted_version, base_version

LARGEST = 1 << 14


@given(st.data())
def test_the_product_is_exact(data: st.DataObject) -> None:
    """As rational arithmetic makes it, rounded where the definition says so and nowhere else."""
    rank = data.draw(st.integers(1, 70))
    integers = st.lists(st.integers(-LARGEST, LARGEST), min_size=rank, max_size=rank)
    left, right = (np.array(data.draw(integers), np.int16) for _ in range(2))
    scale = data.draw(st.floats(1e-12, 1e-3))
    start = np.float32(data.draw(st.floats(-2, 2, width=32)))
    product = sum(int(b) * int(a) for b, a in zip(left, right, strict=True))
    exact = np.float32(float(Fraction(scale) * product)) + np.float32(0) + start
    weight = RawTensor("F32", (1, 1), np.array([start]).view(np.uint8))
    merged = merge(weight, Adapter(left[None], right[:, None], scale))
    assert merged.data.tobytes() == np.float32(exact).tobytes()


def test_nothing_to_change_makes_no_patch() -> None:
    base = base_version()
    tensors, packed = adapted_version(base, 1)
    assert list(decode(base, tensors, packed)) == []
    assert [patch.name for patch in decode(base, base, packed)] == [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.weight",
    ]


NAME = "model.layers.0.mlp.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({NAME + RIGHT: None}, "are not the adapters of 2 weights"),
        ({NAME + RIGHT: None, "other": RawTensor("U8", (1,), np.zeros(1, np.uint8))}, "is not whole"),
        ({NAME + LEFT: RawTensor("I16", (2, 3), np.zeros(12, np.uint8))}, "do not fit"),
        ({NAME + LEFT: RawTensor("BF16", (16, 3), np.zeros(96, np.uint8))}, "types and dimensions"),
        ({NAME + SCALE: RawTensor("F64", (1,), np.zeros(8, np.uint8))}, "types and dimensions"),
    ],
)
def test_what_are_no_adapters_of_the_base_is_refused(change: dict[str, RawTensor | None], match: str) -> None:
    base = base_version()
    packed = adapted_version(base, 1)[1] | change
    whole = {name: tensor for name, tensor in packed.items() if tensor is not None}
    with pytest.raises(WeightError, match=match):
        list(decode(base, dict(base), whole))


@pytest.mark.parametrize("name", ["nowhere", "model.layers.0.norm.weight", "model.layers.0.steps"])
def test_only_matrices_of_floats_are_changed(name: str) -> None:
    base = base_version()
    adapter = Adapter(np.zeros((16, 1), np.int16), np.zeros((1, 1), np.int16), 1.0)
    with pytest.raises(WeightError, match="no matrix"):
        list(decode(base, base, pack({name: adapter})))
