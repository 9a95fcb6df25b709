"""What a micro-batch holds, and which sequences share one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.model.packing import Sequence, assign_to_ranks, filler_batch, global_micro_batches, pack_sequences
from services.errors import ContractError


def sequence(prompt: list[int], response: list[int]) -> Sequence:
    return Sequence(np.array(prompt, dtype=np.int32), np.array(response, dtype=np.int32))


def of_length(fed: int) -> Sequence:
    return sequence([1] * fed, [2])


def test_sequences_lie_end_to_end_with_positions_restarted() -> None:
    batch = pack_sequences([sequence([10, 11, 12], [20, 21]), sequence([13], [22, 23, 24])])
    assert batch.input_ids.tolist() == [10, 11, 12, 20, 13, 22, 23]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.lengths == (4, 3)


def test_alone_each_sequence_is_what_it_would_be_by_itself() -> None:
    sequences = [sequence([10, 11, 12], [20, 21]), sequence([13], [22, 23, 24])]
    for alone, of_one in zip(
        pack_sequences(sequences).alone(), (pack_sequences([one]) for one in sequences), strict=True
    ):
        for name in ("input_ids", "position_ids", "cu_seqlens", "rows", "targets"):
            assert torch.equal(getattr(alone, name), getattr(of_one, name)), name
        assert (alone.lengths, alone.response_lengths) == (of_one.lengths, of_one.response_lengths)


def test_rows_predict_exactly_the_response_tokens() -> None:
    batch = pack_sequences([sequence([10, 11, 12], [20, 21]), sequence([13], [22, 23, 24])])
    assert batch.rows.tolist() == [2, 3, 4, 5, 6]
    assert batch.targets.tolist() == [20, 21, 22, 23, 24]
    assert batch.response_lengths == (2, 3)


def lengths(group: list[Sequence]) -> list[int]:
    return [sequence.fed_tokens for sequence in group]


def test_a_micro_batch_is_closed_by_the_first_sequence_that_does_not_fit() -> None:
    found = global_micro_batches(map(of_length, [4, 4, 3, 2, 6, 5, 1]), 8)
    assert [lengths(group) for group in found] == [[4, 4], [3, 2], [6], [5, 1]]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_sequence_longer_than_the_budget_is_alone(ranks: int) -> None:
    assert [lengths(group) for group in global_micro_batches(map(of_length, [2, 30, 2]), 8, ranks)] == [[2], [30], [2]]


def test_a_full_group_is_yielded_before_later_sequences_are_requested() -> None:
    asked = []

    def arriving() -> Iterator[Sequence]:
        for number in range(4):
            asked.append(number)
            yield of_length(4)

    next(global_micro_batches(arriving(), 8))
    assert asked == [0, 1, 2]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 40), st.integers(1, 5))
def test_every_sequence_is_assigned_once_in_order_within_the_budget(sizes: list[int], budget: int, ranks: int) -> None:
    found = list(global_micro_batches(map(of_length, sizes), budget, ranks))
    assert [length for group in found for length in lengths(group)] == sizes
    for group in found:
        shares = assign_to_ranks(lengths(group), budget, ranks, lambda length: length + length**2)
        assert len(shares) == ranks
        assert sorted(index for share in shares for index in share) == list(range(len(group)))
        for share in shares:
            assert share == sorted(share)
            assert sum(lengths(group)[index] for index in share) <= budget or len(share) == 1


def test_ranks_are_balanced_by_cost_not_by_tokens() -> None:
    group = list(map(of_length, [40, 20, 20, 10, 10]))
    assert assign_to_ranks(lengths(group), 100, 2, lambda length: length**2) == [[0], [1, 2, 3, 4]]
    assert assign_to_ranks(lengths(group), 100, 2, float) == [[0, 3], [1, 2, 4]]


def test_a_filler_batch_is_one_token_that_predicts_one() -> None:
    assert (filler_batch().lengths, filler_batch().response_lengths) == ((1,), (1,))


@pytest.mark.parametrize(("prompt", "response"), [([], [1]), ([1], [])])
def test_a_sequence_needs_a_prompt_and_a_response(prompt: list[int], response: list[int]) -> None:
    with pytest.raises(ContractError, match="at least one prompt and one response token"):
        sequence(prompt, response)
