"""What each rank computes of each optimizer step: rank 0's rollouts, shared as they arrive and dealt in turns.

Knows neither weights nor optimizer. Every rank is given all sequences and finds its own share of them by the same rule,
so that nothing but the sequences has to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from typing import NamedTuple

import numpy as np
import torch

from learner.algorithms.objectives import Targets, group_advantages
from learner.config import TrainingConfig
from learner.model import packing
from learner.model.packing import MicroBatch
from learner.parallel.ranks import Payload, Ranks
from services.contracts import Rollout
from services.errors import ContractError


class Sample(NamedTuple):
    """A sequence and what belongs to it, as rank 0 shares it."""

    step: int
    """Of the round."""
    sequence: packing.Sequence
    advantage: float
    """0 where the objective has none."""

    def to_row(self) -> Payload:
        head = [self.step, self.sequence.prompt_tokens.size, int(np.float64(self.advantage).view(np.int64))]
        return np.concatenate([head, self.sequence.prompt_tokens, self.sequence.response_tokens])

    @classmethod
    def from_row(cls, row: Payload) -> Sample:
        step, prompt_tokens, advantage = (int(number) for number in row[:3])
        prompt, response = np.split(row[3:].astype(np.int32), [prompt_tokens])
        return cls(step, packing.Sequence(prompt, response), float(np.int64(advantage).view(np.float64)))


@dataclass(frozen=True, slots=True)
class Turn:
    """What this rank computes while the others compute theirs."""

    batch: MicroBatch
    targets: Targets
    places: tuple[int, ...]
    """Of its sequences within their optimizer step; none when the batch only fills in."""
    micro_batches: int
    """Of all ranks."""
    lengths: tuple[int, ...]
    """Places of each sequence of all ranks."""
    response_lengths: tuple[int, ...]
    """Response tokens of each sequence of all ranks."""


class Dealer:
    """Lazily, from a round's rollouts to the micro-batches of this rank."""

    def __init__(
        self, config: TrainingConfig, cost: Callable[[int], float], device: torch.device, ranks: Ranks
    ) -> None:
        """`cost`: of a sequence of so many tokens."""
        self._config = config
        self._cost = cost
        self._device = device
        self._ranks = ranks

    def mini_batches(self, rollouts: Iterable[Rollout], rewards: Sequence[float] | None) -> Iterator[Iterator[Turn]]:
        """The turns of each optimizer step; a turn comes out as soon as its rollouts are here. Take them in order.

        Rank 0 gives the rollouts in training order, and one reward per rollout for grpo; the others' are ignored.
        """
        rows = (sample.to_row() for sample in self._samples(rollouts, rewards))
        samples = (Sample.from_row(row) for row in self._ranks.broadcast_stream(rows))
        return (self._turns(group) for _, group in groupby(samples, key=lambda sample: sample.step))

    def _samples(self, rollouts: Iterable[Rollout], rewards: Sequence[float] | None) -> Iterator[Sample]:
        """Lazily, on rank 0; with advantages for grpo."""
        advantages: Iterable[float] = repeat(0.0)
        if self._config.objective == "grpo":
            rollouts = list(rollouts)
            if rewards is None or len(rewards) != len(rollouts):
                raise ValueError(f"grpo needs one reward per rollout, {len(rollouts)} in all")
            advantages = group_advantages(rewards, [rollout.index for rollout in rollouts])
        elif rewards is not None:
            raise ValueError(f"objective {self._config.objective} takes no rewards")
        prompts_per_step = self._config.prompts_per_round // self._config.steps_per_round
        for rollout, advantage in zip(_in_order(rollouts), advantages, strict=False):
            sequence = packing.Sequence(rollout.prompt_tokens, rollout.response_tokens)
            yield Sample(rollout.index // prompts_per_step, sequence, advantage)

    def _turns(self, samples: Iterable[Sample]) -> Iterator[Turn]:
        """Lazily: this rank's part of each turn of one optimizer step, on its device."""
        budget, ranks = self._config.micro_batch_tokens, self._ranks
        advantages: list[float] = []

        def sequences() -> Iterator[packing.Sequence]:
            for sample in samples:
                advantages.append(sample.advantage)
                yield sample.sequence

        first = 0
        for turn in packing.global_micro_batches(sequences(), budget, ranks.size):
            shares = packing.assign_to_ranks(turn, budget, ranks.size, self._cost)
            mine = shares[ranks.rank]
            batch = packing.pack_sequences([turn[index] for index in mine]) if mine else packing.filler_batch()
            places = tuple(first + index for index in mine)
            yield Turn(
                batch=batch.to(self._device),
                targets=self._targets(batch, [advantages[place] for place in places]),
                places=places,
                micro_batches=sum(map(bool, shares)),
                lengths=tuple(sequence.fed_tokens for sequence in turn),
                response_lengths=tuple(int(sequence.response_tokens.size) for sequence in turn),
            )
            first += len(turn)

    def _targets(self, batch: MicroBatch, advantages: list[float]) -> Targets:
        tokens = batch.targets.to(self._device, non_blocking=True)
        if self._config.objective != "grpo":
            return Targets(tokens)
        per_rollout = torch.tensor(advantages or [0.0])
        per_token = per_rollout.repeat_interleave(torch.tensor(batch.response_lengths))
        return Targets(tokens, advantages=per_token.to(self._device))


def _in_order(rollouts: Iterable[Rollout]) -> Iterator[Rollout]:
    """The same rollouts; ContractError at the first that is not after its predecessor in the same round."""
    last: Rollout | None = None
    for rollout in rollouts:
        if last is not None and (
            rollout.round != last.round or (rollout.index, rollout.sample) <= (last.index, last.sample)
        ):
            raise ContractError(
                f"rollouts must be of one round, by index and sample: {rollout.rollout_id} came after {last.rollout_id}"
            )
        last = rollout
        yield rollout
