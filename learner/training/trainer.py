"""Optimizer steps on one round's rollouts.

Each step minimises the mean of the algorithm's loss over the step's own response tokens: sums are backpropagated
micro-batch by micro-batch, and the gradient is divided by the count once it is known. So the step does not depend on
how its sequences were packed or on how many ranks, unlike a mean of micro-batch means (as in verl, which the paper's
code builds on), and training may start while rollouts still arrive. A step whose algorithm keeps no answer moves
nothing.

Every rank runs this same code. Rank 0 shares the sequences and each rank computes its share of each micro-batch. A rank
without a share computes a filler that does not count, since all take part in every forward and backward.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch.nn.utils import get_total_norm

from learner.algorithm_list import ALGORITHMS
from learner.algorithms.base import Algorithm, Signal
from learner.config import TrainingConfig
from learner.data.schedule import learning_rate, training_temperature
from learner.model.trained_model import TrainedModel
from learner.parallel.ranks import Order
from learner.parallel.sharding import SavedRows, copy_to_shard, gather, local_shard
from learner.training.batch_sharding import BatchSharding, GlobalMicroBatch, Response, TrainingSample
from learner.training.first_pass import FirstPass
from learner.training.optimizer import Optimizer
from services.errors import CheckpointError, ContractError, ModelError

log = structlog.get_logger()

MODEL, OPTIMIZER = "model.", "optimizer."
"""What the names of weights and of the optimizer's state begin with in a checkpoint."""

CLIP_EPSILON = 1e-6
"""Added to the norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does."""


@dataclass(frozen=True, slots=True)
class RoundStats:
    """What one round of training did."""

    loss: float
    """Mean over the steps taken of the loss per response token."""
    grad_norm: float
    """Mean over the steps taken, before clipping."""
    learning_rate: float
    """Of the last step."""
    steps: int
    """Mini-batches of the round: steps taken and skipped."""
    skipped_steps: int
    """Steps left out because their gradient was not finite."""
    micro_batches: int
    prompt_tokens: int
    response_tokens: int
    seconds: float
    """Spent computing; time that the rollouts made the trainer wait is not in it."""
    nll: tuple[float, ...]
    """Per rollout, in order: mean of -log pi(o | q; tau_t) over its tokens, just before the step that trained it."""
    log_probs: tuple[NDArray[np.float32], ...] = field(compare=False)  # arrays have no single answer; `nll` is of them
    """Per rollout, in order: [R] log pi of each response token, as in `nll`."""
    signals: tuple[Signal, ...] = ()
    """One a rollout, in order, for an algorithm that has a score."""


@dataclass(slots=True)
class _Tally:
    """What the running round adds up."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    log_probs: list[NDArray[np.float32]] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    fed_tokens: int = 0
    response_tokens: int = 0
    micro_batches: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0

    def stats(self, rate: float) -> RoundStats:
        """The round as a whole; ModelError when no step of it could be taken."""
        if not self.nll:
            raise ContractError("a round needs at least one rollout, got none")
        if not self.losses:
            raise ModelError(
                f"the gradient of all {self.skipped_steps} steps of the round is not finite: the weights have diverged",
                hint="start from an earlier checkpoint with a lower training.learning_rate",
            )
        return RoundStats(
            loss=float(np.mean(self.losses)),
            grad_norm=float(np.mean(self.norms)),
            learning_rate=rate,
            steps=len(self.losses) + self.skipped_steps,
            skipped_steps=self.skipped_steps,
            micro_batches=self.micro_batches,
            prompt_tokens=self.fed_tokens - self.response_tokens + len(self.nll),
            response_tokens=self.response_tokens,
            seconds=self.seconds,
            nll=tuple(self.nll),
            log_probs=tuple(self.log_probs),
            signals=tuple(self.signals),
        )


class Trainer:
    """Owns the optimizer of a `TrainedModel`. Same state and same rollouts give the same bits on CPU."""

    def __init__(self, model: TrainedModel, config: TrainingConfig) -> None:
        self.model = model
        self.algorithm: Algorithm = ALGORITHMS[config.algorithm]
        self._ranks = model.ranks
        self._config = config
        self._sharding = BatchSharding(
            config, model.cost.layers, model.device, model.ranks, with_signals=self.algorithm.has_signals
        )
        self._first_pass = FirstPass(model, self.algorithm, config)
        self._parameters = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
        self._optimizer = Optimizer(self._parameters, config)
        self.steps = 0
        """Optimizer steps since the run began, which the learning rate follows."""

    def train_round(self, samples: Iterable[TrainingSample] = ()) -> RoundStats:
        """Take the round's `steps_per_round` steps on contiguous mini-batches of its prompts.

        `samples` come in training order: by position, then sample. They may be an iterator that waits for rollouts:
        each is trained as soon as its micro-batch is full, unless the algorithm needs the whole round first. All G
        samples of a prompt are in their prompt's mini-batch. Ranks other than 0 give none.

        Raises ContractError for rollouts out of order, of several rounds or none at all. After an error the weights may
        be between two rounds: load a state before going on. Raises ModelError when every step had to be skipped.
        """
        self._ranks.send_order(Order.TRAIN)
        tally = _Tally()
        mini_batches: Iterable[Iterable[GlobalMicroBatch]] = self._sharding.mini_batches(samples)
        if self.algorithm.needs_whole_round:
            mini_batches = [list(mini_batch) for mini_batch in mini_batches]
        if self.algorithm.needs_first_pass:
            started = time.perf_counter()
            asked = [self._first_pass.ask(mini_batch) for mini_batch in mini_batches]
            mini_batches = [mini_batch for mini_batch, _ in asked]
            tally.signals = [signal for _, signals in asked for signal in signals]
            tally.seconds += time.perf_counter() - started
        for mini_batch in mini_batches:
            self._train_step(mini_batch, tally)
        return tally.stats(self._optimizer.learning_rate)

    def _train_step(self, mini_batch: Iterable[GlobalMicroBatch], tally: _Tally) -> None:
        """Accumulate the gradient of the mini-batch's summed loss, then update."""
        self._optimizer.clear_gradients()
        total = torch.zeros((), device=self.model.device)
        log_probs: list[tuple[GlobalMicroBatch, torch.Tensor]] = []
        responses: list[Response] = []
        for part in mini_batch:
            started = time.perf_counter()
            tau = training_temperature(self._config, part.temperature)
            losses = self.model.token_losses(part.batch, self.algorithm.losses, part.targets, tau)
            counts = float(bool(part.positions))
            (losses.loss * counts).backward()  # type: ignore[no-untyped-call]
            total += losses.loss.detach() * counts
            log_probs.append((part, losses.log_probs))
            responses.extend(part.responses)
            tally.fed_tokens += sum(part.lengths)
            tally.micro_batches += part.micro_batches
            tally.seconds += time.perf_counter() - started
        started = time.perf_counter()
        lengths = np.array([response.tokens.size for response in responses])
        loss, per_response = self._of_all_ranks(float(total), log_probs, lengths)
        tokens = int(lengths[[self._counts(response) for response in responses]].sum())
        norm = self._update(tokens) if tokens else 0.0
        if math.isfinite(norm):
            tally.losses.append(loss / max(tokens, 1))
            tally.norms.append(norm)
        else:
            tally.skipped_steps += 1
        tally.nll.extend(float(-of_tokens.mean()) for of_tokens in per_response)
        tally.log_probs.extend(of_tokens.astype(np.float32) for of_tokens in per_response)
        tally.response_tokens += int(lengths.sum())
        tally.seconds += time.perf_counter() - started

    def _counts(self, response: Response) -> bool:
        """Whether the response's tokens are among those that the loss is divided by."""
        return response.signal != 0 or not self.algorithm.counts_kept_tokens

    def _of_all_ranks(
        self, loss: float, log_probs: Sequence[tuple[GlobalMicroBatch, torch.Tensor]], lengths: NDArray[np.int64]
    ) -> tuple[float, list[NDArray[np.float64]]]:
        """The step's summed loss, and for each of its responses, which have these lengths, those of its tokens."""
        starts = np.cumsum([1, *lengths])
        numbers = np.zeros(starts[-1])
        numbers[0] = loss
        for part, of_tokens in log_probs:
            own = np.split(of_tokens.double().cpu().numpy(), np.cumsum(part.batch.response_lengths)[:-1])
            for position, values in zip(part.positions, own[: len(part.positions)], strict=True):  # else a filler
                numbers[starts[position] : starts[position + 1]] = values
        self._ranks.all_reduce_sum(torch.from_numpy(numbers))
        return float(numbers[0]), np.split(numbers, starts[:-1])[1:]

    def _update(self, tokens: int) -> float:
        """Divide the gradient by the tokens, clip it, step; the norm before clipping.

        A gradient that is not finite would ruin every weight, so such a step is left out.
        """
        grads = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = gather(get_total_norm(grads)) / tokens
        factor = torch.clamp(self._config.max_grad_norm / (norm + CLIP_EPSILON), max=1.0) / tokens
        for grad in grads:
            local_shard(grad).mul_(factor)
        norm_before = float(norm)
        if math.isfinite(norm_before):
            self._optimizer.step(learning_rate(self._config, self.steps))
        else:
            log.warning("step_skipped", step=self.steps, grad_norm=norm_before)
        self._optimizer.clear_gradients()
        self.steps += 1
        return norm_before

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Weights, optimizer state and step count as a flat dict of tensors; they are the live ones, not copies.

        With several ranks the weights and moments are DTensors, of which this rank holds its rows.
        """
        state = {f"{MODEL}{name}": p.detach() for name, p in self._parameters.items()}
        state |= {f"{OPTIMIZER}{name}": tensor for name, tensor in self._optimizer.state_dict().items()}
        state["steps"] = torch.tensor(self.steps)
        return state

    def load_state_dict(self, state: Mapping[str, SavedRows]) -> None:
        """Continue exactly where `state_dict` was taken, on however many ranks; each reads its own rows.

        Raises CheckpointError when it is another model's.
        """
        mine = self.state_dict()
        if {key: tuple(t.shape) for key, t in state.items()} != {key: tuple(t.shape) for key, t in mine.items()}:
            raise CheckpointError(
                "the checkpoint's tensors are not those of this training by name and shape",
                hint="model.path, training.optimizer and [lora] must stay the same for the life of a run",
            )
        for name, p in self._parameters.items():
            copy_to_shard(p, state[f"{MODEL}{name}"])
        prefix = len(OPTIMIZER)
        self._optimizer.load_state_dict({key[prefix:]: t for key, t in state.items() if key.startswith(OPTIMIZER)})
        self.steps = int(state["steps"][...])
