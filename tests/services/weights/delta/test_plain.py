"""The plain coding is exact, costs work for what changes alone, and refuses damage."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import WeightError
from services.tensors import RawTensor
from services.weights.delta import decode, plain
from tests.support import weight_samples
from tests.support.deltas import Version, patched, versions


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
