from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.entropy import entropy_bound_bytes
from services.contracts import TensorEntry
from services.errors import WeightError
from services.tensors import ITEM_BYTES, RawTensor
from services.weights.delta import Patch, apply, decode, encode, plain
from services.weights.delta.elements import KINDS
from services.weights.delta.sections import CHUNK_ELEMENTS, CLASS_RECORD, HEADER, LENGTH, MAGIC, sections_of
from services.weights.delta.streams import GAP_PRECISION, FrameReader, FrameWriter
from tests.support import weight_samples

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


def assert_exact(parent: Version, child: Version) -> bytes:
    delta = encode(parent, child)
    assert weight_samples.bits(patched(parent, delta)) == weight_samples.bits(child)
    return delta


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


@given(versions())
@settings(max_examples=150, deadline=None)
def test_any_change_of_any_type_is_exact(pair: tuple[Version, Version]) -> None:
    assert_exact(*pair)


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


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_gaps_of_any_size_survive(gaps: list[int]) -> None:
    writer = FrameWriter()
    writer.write_integers(np.array(gaps, np.uint64), GAP_PRECISION)
    read, _ = FrameReader(writer.finish()).read_integers(len(gaps), GAP_PRECISION)
    assert read.tolist() == gaps


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


def test_sections_are_cut_by_type_and_length() -> None:
    parent = {
        name: weight_samples.tensor(dtype, (4,))
        for name, dtype in [("b", "F32"), ("c", "F32"), ("a", "F32"), ("d", "I8")]
    }
    assert [section.names for section in sections_of(parent, limit=8)] == [("a", "b"), ("c",), ("d",)]
    assert [section.elements for section in sections_of(parent, limit=8)] == [8, 4, 4]


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


def test_a_parent_of_another_size_is_refused() -> None:
    parent = {"w": weight_samples.tensor("BF16", (40,))}
    delta = encode(parent, {"w": weight_samples.tensor("BF16", (40,), seed=1)})
    with pytest.raises(WeightError, match="section of 40 elements"):
        list(decode({"w": weight_samples.tensor("BF16", (41,))}, delta))


def test_a_patch_beyond_its_target_is_refused() -> None:
    patch = Patch("w", np.array([0, 4]), np.zeros(2, np.uint16))
    with pytest.raises(WeightError, match="4 elements"):
        apply(patch, np.zeros(8, np.uint8))


def assert_harmless(parent: Version, delta: bytes) -> None:
    """Either refused, or patches inside the parent's tensors."""
    try:
        patches = list(decode(parent, delta))
    except WeightError:
        return
    assert len({patch.name for patch in patches}) == len(patches)
    for patch in patches:
        kind = KINDS[parent[patch.name].dtype]
        assert patch.values.dtype == kind.dtype
        assert patch.values.shape == patch.indices.shape
        assert (np.diff(patch.indices) > 0).all()
        apply(patch, parent[patch.name].data.copy())


def fuzz_pair() -> tuple[dict[str, RawTensor], dict[str, RawTensor]]:
    rng = np.random.default_rng(7)
    values = rng.normal(0, 0.01, 3000).astype(np.float32)
    parent = {"w": bf16(values), "v": bf16(values[:50]), **weight_samples.first_version()}
    child = {
        **weight_samples.next_version(parent, seed=1),
        "w": bf16(values + rng.normal(0, 1e-5, 3000).astype(np.float32)),
    }
    child["model.layers.0.norm.weight"] = weight_samples.tensor("F32", (16,), seed=9)
    return parent, child


mutations = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4)


def mutate(data: bytes, edits: list[tuple[int, int]], cut: int) -> bytes:
    changed = bytearray(data[: len(data) - cut])
    for at, value in edits:
        if changed:
            changed[at % len(changed)] = value
    return bytes(changed)


@given(mutations, st.sampled_from([0, 0, 0, 1, 9, 400]))
@settings(max_examples=300, deadline=None)
def test_a_mutated_delta_is_refused_or_harmless(edits: list[tuple[int, int]], cut: int) -> None:
    parent, child = fuzz_pair()
    assert_harmless(parent, mutate(encode(parent, child), edits, cut))


@given(st.integers(0, 10), mutations, st.sampled_from([0, 0, 0, 1, 9]))
@settings(max_examples=300, deadline=None)
def test_a_mutated_payload_in_a_sound_frame_is_refused_or_harmless(
    which: int, edits: list[tuple[int, int]], cut: int
) -> None:
    parent, child = fuzz_pair()
    frames = split(encode(parent, child))
    at = which % len(frames)
    payload = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(frames[at])).read() if frames[at] else b""
    frames[at] = zstandard.ZstdCompressor().compress(mutate(payload, edits, cut))
    assert_harmless(parent, join(frames))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_harmless(data: bytes) -> None:
    assert_harmless(weight_samples.first_version(), MAGIC + data)
    with pytest.raises(WeightError, match="not a weight delta"):
        list(decode({}, b"x" + data))


def test_counts_beyond_the_parent_are_refused_before_memory_is_spent() -> None:
    parent = {"w": weight_samples.tensor("BF16", (16,))}
    for field in ("gaps", "changes"):
        records = np.zeros(1, CLASS_RECORD)
        records[field] = 1 << 60
        writer = FrameWriter()
        writer.write(HEADER.pack(16, 1, 0) + records.tobytes())
        with pytest.raises(WeightError, match=field):
            list(decode(parent, join([writer.finish()])))


def test_a_gap_that_would_wrap_around_is_refused() -> None:
    records = np.zeros(1, CLASS_RECORD)
    records["gaps"] = records["changes"] = 2
    writer = FrameWriter()
    writer.write(HEADER.pack(16, 1, 0) + records.tobytes())
    writer.write_integers(np.array([2**64 - 1, 3], np.uint64), GAP_PRECISION)
    with pytest.raises(WeightError, match="outside"):
        list(decode({"w": weight_samples.tensor("BF16", (16,))}, join([writer.finish()])))


def split(delta: bytes) -> list[bytes]:
    frames, at = [], len(MAGIC)
    while at < len(delta):
        (size,) = LENGTH.unpack_from(delta, at)
        frames.append(delta[at + LENGTH.size : at + LENGTH.size + size])
        at += LENGTH.size + size
    return frames


def join(frames: list[bytes]) -> bytes:
    return MAGIC + b"".join(LENGTH.pack(len(frame)) + frame for frame in frames)


# -- the plain coding --------------------------------------------------------------------------------------------------


def plainly(parent: Version, child: Version) -> bytes:
    return plain.encode(plain.layout_of(parent), weight_samples.flips_between(parent, child))


@given(versions())
@settings(max_examples=150, deadline=None)
def test_any_change_of_any_type_is_exact_when_coded_plainly(pair: tuple[Version, Version]) -> None:
    parent, child = pair
    assert weight_samples.bits(patched(parent, plainly(parent, child))) == weight_samples.bits(child)


def test_the_plain_coding_takes_work_and_bytes_for_what_changes_alone() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 16, 1 << 20, dtype=np.uint16)
    after = bits.copy()
    after[rng.choice(bits.size, 1000, replace=False)] ^= np.uint16(1)
    parent, child = ({"w": RawTensor("BF16", (1 << 20,), each.view(np.uint8))} for each in (bits, after))
    delta = plainly(parent, child)
    assert len(delta) < 2.5 * 1000
    # no element that stays is looked at: the other bytes of the parent may be anything
    blank = {"w": RawTensor("BF16", (1 << 20,), np.zeros(2 << 20, np.uint8))}
    (patch,) = decode(blank, delta)
    assert patch.indices.size == 1000
    assert set(patch.values.tolist()) == {1}


@given(versions(), st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_plain_deltas_give_patches_inside_the_parent_or_a_weight_error(
    pair: tuple[Version, Version], data: st.DataObject
) -> None:
    parent, child = pair
    delta = bytearray(plainly(parent, child))
    at = data.draw(st.integers(len(plain.MAGIC), max(len(plain.MAGIC), len(delta) - 1)))
    if at < len(delta):
        delta[at] ^= data.draw(st.integers(1, 255))
    else:
        del delta[-1:]
    with contextlib.suppress(WeightError):
        assert patched(parent, bytes(delta)).keys() == parent.keys()


@pytest.mark.parametrize("cut", [4, 9, 20, 40])
def test_a_plain_delta_that_ends_early_is_refused(cut: int) -> None:
    parent = weight_samples.first_version()
    delta = plainly(parent, weight_samples.next_version(parent, 1))
    with pytest.raises(WeightError):
        list(decode(parent, delta[:cut]))
