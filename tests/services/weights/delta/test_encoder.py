"""A delta holds every change exactly, and costs about what the change's entropy is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from benchmarks.entropy import entropy_bound_bytes
from services.errors import WeightError
from services.tensors import ITEM_BYTES, RawTensor
from services.weights.delta import decode, encode
from services.weights.delta.sections import CHUNK_ELEMENTS
from tests.support import weight_samples
from tests.support.deltas import Version, bf16, patched, versions


def assert_exact(parent: Version, child: Version) -> bytes:
    delta = encode(parent, child)
    assert weight_samples.bits(patched(parent, delta)) == weight_samples.bits(child)
    return delta


@given(versions())
@settings(max_examples=150, deadline=None)
def test_any_change_of_any_type_is_exact(pair: tuple[Version, Version]) -> None:
    assert_exact(*pair)


def test_nothing_changed_costs_nothing() -> None:
    parent = weight_samples.first_version()
    delta = encode(parent, dict(parent))
    assert list(decode(parent, delta)) == []
    assert len(delta) < 64


def test_empty_and_zero_dimensional_tensors() -> None:
    none = RawTensor("BF16", (0, 3), np.zeros(0, np.uint8))
    one, other = weight_samples.tensor("F32", (), seed=1), weight_samples.tensor("F32", (), seed=2)
    assert_exact({"empty": none, "scalar": one}, {"empty": none, "scalar": other})
    assert_exact({}, {})
    assert_exact({"empty": none}, {"empty": none})


def test_order_of_names_does_not_matter() -> None:
    parent = weight_samples.first_version()
    child = weight_samples.next_version(parent, seed=3)
    backwards = dict(reversed(parent.items()))
    assert encode(parent, child) == encode(backwards, child)
    assert weight_samples.bits(patched(backwards, encode(parent, child))) == weight_samples.bits(child)


def test_data_may_be_unaligned_and_read_only() -> None:
    raw = np.random.default_rng(0).integers(0, 256, 65, dtype=np.uint8)
    raw.flags.writeable = False
    assert_exact({"w": RawTensor("F32", (16,), raw[1:])}, {"w": weight_samples.tensor("F32", (16,), seed=5)})


def test_one_ascending_patch_per_changed_tensor_across_chunks() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.02, (3, CHUNK_ELEMENTS // 2 + 5)).astype(np.float32)
    parent = {"a": bf16(values), "b": bf16(values[0])}
    child = {"a": bf16(values + np.float32(2e-5)), "b": parent["b"]}
    patches = list(decode(parent, encode(parent, child)))
    assert [patch.name for patch in patches] == ["a"]
    assert (np.diff(patches[0].indices) > 0).all()
    assert patches[0].indices[-1] > 1.2 * CHUNK_ELEMENTS
    assert_exact(parent, child)


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_a_tensor_replaced_by_noise_costs_its_own_bytes(dtype: str) -> None:
    parent, child = {"w": weight_samples.tensor(dtype, (20_000,), 1)}, {"w": weight_samples.tensor(dtype, (20_000,), 2)}
    assert len(assert_exact(parent, child)) <= 1.001 * parent["w"].nbytes + 100


def test_small_steps_of_every_element_cost_far_less_than_the_tensor() -> None:
    rng = np.random.default_rng(0)
    old = rng.normal(0, 0.02, 50_000).astype("<f4")
    new = old + rng.normal(0, 1e-7, old.size).astype("<f4")
    parent, child = ({"w": RawTensor("F32", side.shape, side.view(np.uint8))} for side in (old, new))
    assert len(assert_exact(parent, child)) < 0.35 * parent["w"].nbytes


def test_adam_like_steps_cost_about_their_entropy() -> None:
    rng = np.random.default_rng(0)
    master = rng.normal(0, 0.02, 1_000_000).astype(np.float32)
    drift = np.float32(1e-6) * rng.uniform(-1, 1, master.size).astype(np.float32)
    before, after = ({"w": bf16(master + np.float32(steps) * drift)} for steps in (5, 6))
    assert len(assert_exact(before, after)) <= 1.2 * entropy_bound_bytes(before, after)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"w": weight_samples.tensor("BF16", (4, 3)), "x": weight_samples.tensor("I8", ())},
        {"w": weight_samples.tensor("BF16", (3, 4))},
        {"w": weight_samples.tensor("F16", (4, 3))},
    ],
)
def test_versions_with_other_tensors_are_refused(other: Version) -> None:
    with pytest.raises(WeightError):
        encode({"w": weight_samples.tensor("BF16", (4, 3))}, other)
