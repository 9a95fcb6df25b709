"""What a micro-batch holds, and which sequences share one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.packing import Sequence, lay_out, pack
from services.errors import ContractError


def sequence(prompt: list[int], response: list[int]) -> Sequence:
    return Sequence(np.array(prompt, dtype=np.int32), np.array(response, dtype=np.int32))


def of_length(fed: int) -> Sequence:
    return sequence([1] * fed, [2])


def test_sequences_lie_end_to_end_with_positions_restarted() -> None:
    batch = lay_out([sequence([10, 11, 12], [20, 21]), sequence([13], [22, 23, 24])])
    assert batch.input_ids.tolist() == [10, 11, 12, 20, 13, 22, 23]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.lengths == (4, 3)


def test_rows_predict_exactly_the_response_tokens() -> None:
    batch = lay_out([sequence([10, 11, 12], [20, 21]), sequence([13], [22, 23, 24])])
    assert batch.rows.tolist() == [2, 3, 4, 5, 6]
    assert batch.targets.tolist() == [20, 21, 22, 23, 24]
    assert batch.response_lengths == (2, 3)


def test_a_micro_batch_is_closed_by_the_first_sequence_that_does_not_fit() -> None:
    lengths = [4, 4, 3, 2, 6, 5, 1]
    batches = list(pack(map(of_length, lengths), 8))
    assert [batch.lengths for batch in batches] == [(4, 4), (3, 2), (6,), (5, 1)]


def test_a_sequence_longer_than_the_budget_is_alone() -> None:
    assert [batch.lengths for batch in pack(map(of_length, [2, 30, 2]), 8)] == [(2,), (30,), (2,)]


def test_a_full_micro_batch_comes_out_before_later_sequences_are_asked_for() -> None:
    asked = []

    def arriving() -> Iterator[Sequence]:
        for number in range(4):
            asked.append(number)
            yield of_length(4)

    next(pack(arriving(), 8))
    assert asked == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20), st.integers(1, 40))
def test_packing_keeps_every_token_in_order_within_the_budget(sizes: list[tuple[int, int]], budget: int) -> None:
    sequences = [sequence(list(range(p)), list(range(100, 100 + r))) for p, r in sizes]
    batches = list(pack(sequences, budget))
    assert [n for batch in batches for n in batch.lengths] == [s.fed_tokens for s in sequences]
    assert torch.cat([batch.targets for batch in batches]).tolist() == [
        token for s in sequences for token in s.response_tokens.tolist()
    ]
    assert all(sum(batch.lengths) <= budget or len(batch.lengths) == 1 for batch in batches)


@pytest.mark.parametrize(("prompt", "response"), [([], [1]), ([1], [])])
def test_a_sequence_needs_a_prompt_and_a_response(prompt: list[int], response: list[int]) -> None:
    with pytest.raises(ContractError, match="at least one prompt and one response token"):
        sequence(prompt, response)
