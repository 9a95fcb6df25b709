"""What each rank computes of each step: every sequence once, in order, under the budget, with its own signal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from learner.model.packing import MicroBatch
from learner.parallel.ranks import Payload, Ranks
from learner.training.batch_sharding import BatchSharding, GlobalMicroBatch, TrainingSample
from services.contracts import Rollout
from services.errors import ContractError
from tests.support import tiny_models

BUDGET = 12


class Listening(Ranks):
    """A rank that gets what rank 0 sends, and keeps it for the others."""

    def __init__(self, rank: int, size: int, sent: list[Payload]) -> None:
        super().__init__(rank, size)
        self._sent = sent

    def broadcast_stream(self, payloads: Iterable[Payload]) -> Iterator[Payload]:
        if not self.is_leader:
            yield from self._sent
            return
        for payload in payloads:
            assert payload.dtype == np.int64, "all ranks agree on it beforehand"
            self._sent.append(payload)
            yield payload


def sharding(ranks: Ranks | None = None, cost: Callable[[int], float] = float, **options: Any) -> BatchSharding:
    """Of rounds of 8 prompts in 2 steps."""
    config = tiny_models.training(micro_batch_tokens=BUDGET)
    return BatchSharding(config, cost, torch.device("cpu"), ranks or Ranks(), **options)


def steps_of(sharding: BatchSharding, samples: Iterable[TrainingSample]) -> list[list[GlobalMicroBatch]]:
    return [list(step) for step in sharding.mini_batches(samples)]


def sequences_of(batch: MicroBatch) -> list[tuple[list[int], list[int]]]:
    """(fed tokens, response) of each sequence of a micro-batch."""
    fed = torch.split(batch.input_ids, list(batch.lengths))
    responses = torch.split(batch.targets, list(batch.response_lengths))
    return [(a.tolist(), b.tolist()) for a, b in zip(fed, responses, strict=True)]


def responses_of(part: GlobalMicroBatch) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """(index within the step, position in the round, tokens) of each response of all ranks."""
    return tuple((one.step_index, one.position, tuple(one.tokens.tolist())) for one in part.responses)


def expected(rollout: Rollout) -> tuple[list[int], list[int]]:
    tokens = [*rollout.prompt_tokens.tolist(), *rollout.response_tokens.tolist()]
    return tokens[:-1], rollout.response_tokens.tolist()


def test_a_step_has_all_samples_of_its_prompts_and_no_others() -> None:
    rollouts = tiny_models.rollouts(8, samples=3)
    steps = steps_of(sharding(), map(TrainingSample, rollouts))
    assert [sum(len(part.lengths) for part in step) for step in steps] == [12, 12]
    found = [one for step in steps for part in step for one in sequences_of(part.batch)]
    assert sorted(found) == sorted(map(expected, rollouts))


def test_positions_count_through_the_step_and_start_anew_with_the_next() -> None:
    for step in steps_of(sharding(), tiny_models.samples(8, samples=2)):
        assert len(step) > 1
        assert sorted(position for part in step for position in part.positions) == list(range(8))
        assert [part.positions[0] for part in step] == [
            sum(len(before.lengths) for before in step[:index]) for index in range(len(step))
        ]


def test_each_micro_batch_keeps_to_the_budget_unless_one_sequence_is_longer() -> None:
    rollouts = [*tiny_models.rollouts(7), tiny_models.rollout(7, range(5), range(20))]
    parts = [part for step in steps_of(sharding(), map(TrainingSample, rollouts)) for part in step]
    assert all(sum(part.lengths) <= BUDGET or len(part.lengths) == 1 for part in parts)
    assert max(sum(part.lengths) for part in parts) == 24
    assert all(part.batch.lengths == part.lengths for part in parts), "with one rank all is its own"


@pytest.mark.parametrize("size", [2, 3])
def test_the_ranks_share_every_micro_batch_without_sending_who_gets_what(size: int) -> None:
    rollouts = tiny_models.rollouts(8, samples=2, seed=3)
    sent: list[Payload] = []
    leader = steps_of(sharding(Listening(0, size, sent)), map(TrainingSample, rollouts))
    others = [steps_of(sharding(Listening(rank, size, sent)), ()) for rank in range(1, size)]
    for step, mini_batches in enumerate(zip(leader, *others, strict=True)):
        of_step = [rollout for rollout in rollouts if rollout.position // 4 == step]
        taken: dict[int, tuple[list[int], list[int]]] = {}
        for parts in zip(*mini_batches, strict=True):
            assert {part.lengths for part in parts} == {parts[0].lengths}
            assert {responses_of(part) for part in parts} == {responses_of(parts[0])}
            assert {part.micro_batches for part in parts} == {sum(bool(part.positions) for part in parts)}
            for part in parts:
                if part.positions:
                    taken |= dict(zip(part.positions, sequences_of(part.batch), strict=True))
                    assert sum(part.batch.lengths) <= BUDGET or len(part.positions) == 1
                else:
                    assert sequences_of(part.batch) == [([0], [0])], "it fills in, and does not count"
        assert taken == {position: expected(rollout) for position, rollout in enumerate(of_step)}
        assert [response for part in mini_batches[0] for response in responses_of(part)] == [
            (index, rollout.position, tuple(rollout.response_tokens.tolist())) for index, rollout in enumerate(of_step)
        ]


def test_the_costliest_sequence_goes_to_the_rank_that_has_least() -> None:
    rollouts = [tiny_models.rollout(i, [1], range(length)) for i, length in enumerate([4, 4, 7, 2])]
    sent: list[Payload] = []
    both = [
        steps_of(sharding(Listening(rank, 2, sent), lambda tokens: tokens**2), map(TrainingSample, rollouts))
        for rank in range(2)
    ]
    assert [[part.positions for part in step] for rank in both for step in rank] == [[(2,)], [(0, 1, 3)]]


def test_every_token_has_the_signal_of_its_rollout() -> None:
    rollouts = tiny_models.rollouts(8)
    signals = [index - 3.25 for index in range(8)]
    steps = steps_of(sharding(with_signals=True), map(TrainingSample, rollouts, signals))
    for step, mini_batch in enumerate(steps):
        for part in mini_batch:
            assert part.targets.signals is not None
            assert part.targets.signals.dtype == torch.float32
            assert {response.tokens.dtype for response in part.responses} == {np.dtype(np.int32)}
            own = [signals[4 * step + position] for position in part.positions]
            assert part.targets.signals.tolist() == np.repeat(own, part.batch.response_lengths).tolist()
            assert [response.signal for response in part.responses] == own
            doubled = part.with_signals([2 * signal for signal in signals[4 * step : 4 * step + 4]])
            assert doubled.targets.signals is not None
            assert doubled.targets.signals.tolist() == (2 * part.targets.signals).tolist()
            assert [response.signal for response in doubled.responses] == [2 * signal for signal in own]
            assert torch.equal(part.targets.tokens, part.batch.targets)
    (plain, *_), *_ = steps_of(sharding(), map(TrainingSample, rollouts, signals))
    assert plain.targets.signals is None


def test_what_fills_in_has_no_signal() -> None:
    sent: list[Payload] = []
    sample = TrainingSample(tiny_models.rollout(0, [1, 2], [3, 4]), 0.1)
    steps_of(sharding(Listening(0, 2, sent), with_signals=True), [sample])
    ((part,),) = steps_of(sharding(Listening(1, 2, sent), with_signals=True), ())
    assert part.positions == ()
    assert part.targets.signals is not None
    assert part.targets.signals.tolist() == [0.0]
    assert [(response.signal, response.tokens.tolist()) for response in part.responses] == [(0.1, [3, 4])]


def test_a_full_micro_batch_comes_out_before_the_next_rollout_is_asked_for() -> None:
    asked = 0

    def arriving() -> Iterator[TrainingSample]:
        nonlocal asked
        for asked in range(8):
            yield TrainingSample(tiny_models.rollout(asked, [1, 2], [3, 4, 5, 6]))  # 5 fed tokens: two fit

    first = next(next(sharding().mini_batches(arriving())))
    assert (asked, first.lengths) == (2, (5, 5)), "the third shows that it does not fit"


@pytest.mark.parametrize(("position", "sample"), [(0, 0), (1, 0), (0, 1)])
def test_a_rollout_that_does_not_follow_its_predecessor_is_refused(position: int, sample: int) -> None:
    after = [tiny_models.rollout(1, [1], [2], sample=0), tiny_models.rollout(position, [1], [2], sample=sample)]
    with pytest.raises(ContractError, match=f"{after[1].rollout_id} came after {after[0].rollout_id}"):
        steps_of(sharding(), map(TrainingSample, after))
