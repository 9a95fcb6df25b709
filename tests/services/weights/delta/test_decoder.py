"""Whatever the bytes, a delta gives patches inside the parent or is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import WeightError
from services.tensors import RawTensor
from services.weights.delta import Patch, apply, decode, encode
from services.weights.delta.elements import KINDS
from services.weights.delta.sections import CLASS_RECORD, HEADER, LENGTH, MAGIC
from services.weights.delta.streams import GAP_PRECISION, FrameWriter
from tests.support import weight_samples
from tests.support.deltas import Version, bf16


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
