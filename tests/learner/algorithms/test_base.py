"""What an algorithm may declare, and what its groups draw with."""

from __future__ import annotations

import struct
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest
import torch

from learner.algorithms.base import Algorithm, ScoredGroup, Targets, group_seed
from learner.algorithms.majority_vote import MAJORITY_VOTE
from learner.algorithms.self_certainty import SELF_CERTAINTY


def test_a_groups_seed_is_its_own_and_the_same_again() -> None:
    one, two = np.array([1, 2], dtype=np.int32), np.array([3], dtype=np.int32)
    seeds = [group_seed(0, [one, two]), group_seed(1, [one, two]), group_seed(0, [two, one]), group_seed(0, [one])]
    joined = group_seed(0, [np.concatenate([one, two])])
    assert len({*seeds, joined}) == 5
    assert group_seed(0, [one, two]) == seeds[0]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_groups_seed_is_the_same_on_every_machine() -> None:
    """A learner that goes on elsewhere draws what it drew before."""
    responses = [np.array([1, 2**31 - 1], dtype=np.int32), np.array([], dtype=np.int32), np.array([3], dtype=">i4")]
    packed = struct.pack("<QQiiQQi", 300, 2, 1, 2**31 - 1, 0, 1, 3)
    (digest,) = struct.unpack("<Q", blake2b(packed, digest_size=8).digest())
    assert group_seed(300, responses) == digest >> 1


@pytest.mark.parametrize("old", [None, torch.tensor([0.1, 0.2, 0.3])])
@pytest.mark.parametrize("signals", [None, torch.tensor([1.0, 2.0, 3.0])])
def test_a_slice_of_targets_has_all_that_is_known_of_its_tokens(
    old: torch.Tensor | None, signals: torch.Tensor | None
) -> None:
    part = Targets(torch.tensor([5, 6, 7]), old, signals)[1:3]
    assert part.tokens.tolist() == [6, 7]
    for found, whole in ((part.old_log_probs, old), (part.signals, signals)):
        assert (found is None) == (whole is None)
        assert found is None or whole is None or torch.equal(found, whole[1:3])


def test_signals_come_from_texts_or_from_scores() -> None:
    assert replace(MAJORITY_VOTE, name="mine").has_signals
    assert replace(SELF_CERTAINTY, name="mine").has_signals
    assert not Algorithm("mine", losses=MAJORITY_VOTE.losses).has_signals


def test_a_mean_score_is_per_token() -> None:
    assert ScoredGroup((3.0, 4.0), (2, 4)).means == [1.5, 1.0]


def test_a_score_needs_the_whole_round_and_somebody_who_asks_for_it() -> None:
    with pytest.raises(ValueError, match="whole round"):
        replace(SELF_CERTAINTY, needs_whole_round=False)
    with pytest.raises(ValueError, match="signals"):
        replace(SELF_CERTAINTY, score_signals=None)
    with pytest.raises(ValueError, match="signals"):
        replace(SELF_CERTAINTY, signals=MAJORITY_VOTE.signals)
