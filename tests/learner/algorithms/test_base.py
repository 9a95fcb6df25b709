"""What an algorithm may declare, and what its groups draw with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.algorithms.base import ScoredGroup, group_seed
from learner.algorithms.majority_vote import MAJORITY_VOTE
from learner.algorithms.self_certainty import SELF_CERTAINTY


def test_a_groups_seed_is_its_own_and_the_same_again() -> None:
    one, two = np.array([1, 2], dtype=np.int32), np.array([3], dtype=np.int32)
    seeds = [group_seed(0, [one, two]), group_seed(1, [one, two]), group_seed(0, [two, one]), group_seed(0, [one])]
    joined = group_seed(0, [np.concatenate([one, two])])
    assert len({*seeds, joined}) == 5
    assert group_seed(0, [one, two]) == seeds[0]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_mean_score_is_per_token() -> None:
    assert ScoredGroup((3.0, 4.0), (2, 4)).means == [1.5, 1.0]


def test_a_score_needs_the_whole_round_and_somebody_who_asks_for_it() -> None:
    with pytest.raises(ValueError, match="whole round"):
        replace(SELF_CERTAINTY, needs_whole_round=False)
    with pytest.raises(ValueError, match="signals"):
        replace(SELF_CERTAINTY, score_signals=None)
    with pytest.raises(ValueError, match="signals"):
        replace(SELF_CERTAINTY, signals=MAJORITY_VOTE.signals)
