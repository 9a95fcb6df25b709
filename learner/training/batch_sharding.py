"""What each rank computes of each optimizer step: rank 0's rollouts, shared as they arrive and split among the ranks.

Every rank gets all sequences and finds its own share of them by the same rule, so that nothing but the sequences has
to be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

from learner.algorithms.base import Targets
from learner.config import TrainingConfig
from learner.model import packing
from learner.model.packing import MicroBatch
from learner.parallel.ranks import Payload, Ranks
from services.contracts import Rollout
from services.errors import ContractError


class TrainingSample(NamedTuple):
    """A rollout and what its answer is worth. Producer: the loop. Consumer: the trainer, on rank 0."""

    rollout: Rollout
    signal: float = 0.0
    """For an algorithm that has signals."""


class _SharedSample(NamedTuple):
    """What of a sample rank 0 sends to the others."""

    step: int
    """Of the round."""
    sequence: packing.Sequence
    signal: float

    @property
    def fed_tokens(self) -> int:
        return self.sequence.fed_tokens

    def to_row(self) -> Payload:
        head = [self.step, self.sequence.prompt_tokens.size, int(np.float64(self.signal).view(np.int64))]
        return np.concatenate([head, self.sequence.prompt_tokens, self.sequence.response_tokens])

    @classmethod
    def from_row(cls, row: Payload) -> _SharedSample:
        step, prompt_tokens, signal = (int(number) for number in row[:3])
        prompt, response = np.split(row[3:].astype(np.int32), [prompt_tokens])
        return cls(step, packing.Sequence(prompt, response), float(np.int64(signal).view(np.float64)))


@dataclass(frozen=True, slots=True)
class GlobalMicroBatch:
    """One micro-batch of all ranks, and this rank's share of it."""

    batch: MicroBatch
    targets: Targets
    positions: tuple[int, ...]
    """Of this rank's sequences within their optimizer step; none when the batch only fills in."""
    micro_batches: int
    """Ranks that have a share."""
    lengths: tuple[int, ...]
    """Fed tokens of each sequence of all ranks."""
    response_lengths: tuple[int, ...]
    """Response tokens of each sequence of all ranks."""


class BatchSharding:
    """Lazily, from a round's samples to the micro-batches of this rank."""

    def __init__(
        self,
        config: TrainingConfig,
        cost: Callable[[int], float],
        device: torch.device,
        ranks: Ranks,
        *,
        with_signals: bool = False,
    ) -> None:
        """`cost`: of a sequence of so many tokens. `with_signals`: whether the loss looks at the samples' signals."""
        self._budget_tokens = config.micro_batch_tokens
        self._prompts_per_step = config.prompts_per_round // config.steps_per_round
        self._cost = cost
        self._device = device
        self._ranks = ranks
        self._with_signals = with_signals

    def mini_batches(self, samples: Iterable[TrainingSample]) -> Iterator[Iterator[GlobalMicroBatch]]:
        """The micro-batches of each optimizer step, each as soon as its rollouts are here. Take them in order.

        Rank 0 gives the samples in training order; what the other ranks give is ignored.
        """
        shared = map(_SharedSample.from_row, self._ranks.broadcast_stream(self._rows(samples)))
        return (self._micro_batches(group) for _, group in groupby(shared, key=lambda sample: sample.step))

    def _rows(self, samples: Iterable[TrainingSample]) -> Iterator[Payload]:
        """On rank 0; ContractError at the first rollout that does not follow its predecessor in the same round."""
        last: Rollout | None = None
        for rollout, signal in samples:
            if last is not None and (
                rollout.round != last.round or (rollout.position, rollout.sample) <= (last.position, last.sample)
            ):
                raise ContractError(
                    f"rollouts must be of one round, by position and sample: {rollout.rollout_id} came after "
                    f"{last.rollout_id}"
                )
            last = rollout
            sequence = packing.Sequence(rollout.prompt_tokens, rollout.response_tokens)
            yield _SharedSample(rollout.position // self._prompts_per_step, sequence, signal).to_row()

    def _micro_batches(self, samples: Iterable[_SharedSample]) -> Iterator[GlobalMicroBatch]:
        """Of one optimizer step, on this rank's device."""
        first = 0
        for group in packing.global_micro_batches(samples, self._budget_tokens, self._ranks.size):
            lengths = [sample.fed_tokens for sample in group]
            shares = packing.assign_to_ranks(lengths, self._budget_tokens, self._ranks.size, self._cost)
            mine = shares[self._ranks.rank]
            own = [group[position] for position in mine]
            packed = packing.pack_sequences([sample.sequence for sample in own]) if own else packing.filler_batch()
            batch = packed.to(self._device)
            yield GlobalMicroBatch(
                batch=batch,
                targets=self._targets(batch, [sample.signal for sample in own]),
                positions=tuple(first + position for position in mine),
                micro_batches=sum(map(bool, shares)),
                lengths=tuple(lengths),
                response_lengths=tuple(int(sample.sequence.response_tokens.size) for sample in group),
            )
            first += len(group)

    def _targets(self, batch: MicroBatch, signals: list[float]) -> Targets:
        if not self._with_signals:
            return Targets(batch.targets)
        per_token = torch.from_numpy(np.repeat(np.array(signals or [0.0], np.float32), batch.response_lengths))
        if self._device.type == "cuda":
            per_token = per_token.pin_memory()
        return Targets(batch.targets, signals=per_token.to(self._device, non_blocking=True))
