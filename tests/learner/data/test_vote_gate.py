"""Prompts that are too easy or too hard are passed over, and a learner that resumes passes over the same."""

from __future__ import annotations

import json

import pytest

from learner.data.prompt_order import PromptOrder
from learner.data.vote_gate import RECHECK_EPOCHS, VoteGate

PROMPTS, PER_ROUND, AHEAD = 12, 4, 2
EASY, HARD = {0, 1, 2, 3}, {4}


def new_gate() -> VoteGate:
    return VoteGate((0.3, 0.9), PromptOrder([1.0] * PROMPTS, seed=5), per_round=PER_ROUND, ahead=AHEAD)


def share_of(index: int) -> float:
    return 1.0 if index in EASY else 0.1 if index in HARD else 0.6


def train(gate: VoteGate, rounds: range) -> list[list[int]]:
    """Train these rounds; returns the prompts of each."""
    taken = []
    for round_ in rounds:
        taken.append(gate.indices_of(round_))
        gate.note(round_, {index: share_of(index) for index in taken[-1]})
    return taken


def test_what_is_too_easy_or_too_hard_is_passed_over_until_it_is_looked_at_again() -> None:
    taken = train(new_gate(), range(30))
    assert sorted(taken[0] + taken[1] + taken[2]) == list(range(PROMPTS)), "all are sampled once"
    # Round 4 is issued when round 2 is trained, and by then all are known.
    middle = [index for indices in taken[4:6] for index in indices]
    assert not set(middle) & (EASY | HARD)
    assert {index for indices in taken[9:] for index in indices} == set(range(PROMPTS)), "they come again"


@pytest.mark.parametrize("killed_at", [0, 1, 2, 7, 20])
def test_a_gate_from_a_checkpoint_takes_the_same_prompts(killed_at: int) -> None:
    whole = new_gate()
    expected = train(whole, range(30))
    gate = new_gate()
    train(gate, range(killed_at))
    state = json.loads(json.dumps(gate.state()))
    train(gate, range(killed_at, killed_at + 2))  # what a dead learner did after its checkpoint
    resumed = new_gate()
    resumed.load_state(state)
    assert train(resumed, range(killed_at, 30)) == expected[killed_at:]
    assert resumed.state() == whole.state()


def test_rounds_are_planned_so_far_as_they_are_issued() -> None:
    gate = new_gate()
    assert [gate.is_planned(round_) for round_ in range(4)] == [True, True, False, False]
    train(gate, range(1))
    assert gate.is_planned(2)
    with pytest.raises(KeyError):
        gate.indices_of(3)


def test_where_all_prompts_are_too_easy_training_goes_on() -> None:
    gate = new_gate()
    for round_ in range(3 * RECHECK_EPOCHS * PROMPTS // PER_ROUND):
        gate.note(round_, dict.fromkeys(gate.indices_of(round_), 1.0))
        assert len(gate.indices_of(round_ + 1)) == PER_ROUND
