"""What changed is found on the device that holds it, and little more than that leaves it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.parallel import published_shards
from learner.parallel.published_shards import PublishedShards, changed_positions
from tests.support.fake_cuda.publishing import measure_publishing
from tests.support.fake_cuda.runs import needs_compiler

CHANGED = 0.0025


@needs_compiler
def test_publishing_copies_a_hundredth_of_the_model_from_the_devices() -> None:
    """7 B on 4 ranks, 0.25 % changed: less than 1 % of a rank's share of the model's bytes goes to its host."""
    (measured,) = measure_publishing("7b", [4], CHANGED)
    model_bytes = 2 * measured["elements"]
    assert measured["changed"] >= 0.99 * CHANGED * measured["elements"]
    assert 0.005 * model_bytes < measured["copied_bytes"] <= 0.01 * model_bytes
    assert measured["items"] == 0
    assert measured["extra_peak_bytes"] <= 256 << 20, "blocks, whatever the size of a tensor"


@given(st.integers(0, 200), st.sampled_from(["<u1", "<u2", "<u4", "<u8"]), st.integers(0, 1 << 30))
@settings(max_examples=80, deadline=None)
def test_positions_are_all_of_the_elements_that_are_not_zero(size: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = (rng.integers(1, 256, size) * (rng.random(size) < 0.1)).astype(kind)
    assert changed_positions(bits).tolist() == np.flatnonzero(bits).tolist()


@pytest.mark.parametrize("block", [1, 7, 64])
def test_what_changed_is_found_across_blocks_and_taken_over(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_shards, "CACHED_ELEMENTS", block)
    weight = torch.linspace(-2, 2, 100)
    shards = PublishedShards()
    shards.keep("w", weight.bfloat16().clone())
    weight[[3, 7, 8, 99]] += 1.0
    flips = shards.advance("w", weight.reshape(10, 10))
    assert flips.positions.tolist() == [3, 7, 8, 99]
    assert torch.equal(shards.shards()[0], weight.bfloat16())
    assert shards.advance("w", weight).positions.size == 0
