"""What each rank computes of each optimizer step: rank 0's rollouts, shared as they arrive and split among the ranks.

Every rank gets all sequences and finds its own share of them by the same rule, so that nothing but the sequences has
to be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

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
    position: int
    """Of its prompt in the round."""
    sequence: packing.Sequence
    signal: float
    temperature: float
    """At which it was sampled."""

    @property
    def fed_tokens(self) -> int:
        return self.sequence.fed_tokens

    def to_row(self) -> Payload:
        floats = np.array([self.signal, self.temperature]).view(np.int64)
        head = [self.step, self.position, self.sequence.prompt_tokens.size, *floats]
        return np.concatenate([head, self.sequence.prompt_tokens, self.sequence.response_tokens])

    @classmethod
    def from_row(cls, row: Payload) -> _SharedSample:
        step, position, prompt_tokens = (int(number) for number in row[:3])
        signal, temperature = row[3:5].view(np.float64).tolist()
        prompt, response = np.split(row[5:].astype(np.int32), [prompt_tokens])
        return cls(step, position, packing.Sequence(prompt, response), signal, temperature)


class Response(NamedTuple):
    """What every rank knows of each response of a global micro-batch."""

    step_index: int
    """Within its optimizer step."""
    position: int
    """Of its prompt in the round."""
    tokens: NDArray[np.int32]
    """[R]."""
    signal: float


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
    responses: tuple[Response, ...]
    """Of all ranks, in training order."""
    temperature: float
    """At which the responses were sampled."""

    def with_signals(self, signals: Sequence[float]) -> GlobalMicroBatch:
        """The same with these signals, by position within the optimizer step."""
        responses = tuple(response._replace(signal=signals[response.step_index]) for response in self.responses)
        own = [signals[position] for position in self.positions]
        per_token = signals_per_token(self.batch, own)
        return replace(self, responses=responses, targets=replace(self.targets, signals=per_token))


def signals_per_token(batch: MicroBatch, signals: Sequence[float]) -> torch.Tensor:
    """[N] of each response token of the batch, on its device; its sequences have these signals, a filler has none."""
    per_token = np.repeat(np.array(signals or [0.0], np.float32), batch.response_lengths)
    return packing.copy_without_waiting(torch.from_numpy(per_token), batch.targets.device)


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
            step = rollout.position // self._prompts_per_step
            yield _SharedSample(step, rollout.position, sequence, signal, rollout.temperature).to_row()

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
                responses=tuple(
                    Response(first + index, sample.position, sample.sequence.response_tokens, sample.signal)
                    for index, sample in enumerate(group)
                ),
                temperature=group[0].temperature,
            )
            first += len(group)

    def _targets(self, batch: MicroBatch, signals: list[float]) -> Targets:
        if not self._with_signals:
            return Targets(batch.targets)
        return Targets(batch.targets, signals=signals_per_token(batch, signals))
