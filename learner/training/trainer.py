"""Optimizer steps on one round's rollouts. Knows neither where rollouts come from nor where weights go.

Each step minimises the mean of the objective over the step's own response tokens: sums are backpropagated micro-batch
by micro-batch, and the gradient is divided by the count once it is known. So the step does not depend on how its
sequences were packed or on how many ranks, unlike a mean of micro-batch means (as in verl, which the paper's code
builds on), and training may start while rollouts still arrive.

Every rank runs this same code: rank 0 shares the sequences, each takes the share of each turn that it is dealt, and a
rank that is dealt nothing computes something that does not count, since all take part in every forward and backward.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch.nn.utils import get_total_norm

from learner.algorithms.objectives import nll, objective_named
from learner.config import TrainingConfig
from learner.data.schedule import learning_rate
from learner.model.trained_model import TrainedModel
from learner.parallel.ranks import Order
from learner.parallel.sharding import SavedRows, copy_to_shard, gather, local_shard
from learner.training.batch_sharding import Dealer, Turn
from learner.training.optimizer import Optimizer
from services.contracts import Rollout
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
    """Mean over the steps taken of the objective per response token."""
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


@dataclass(slots=True)
class _Tally:
    """What the running round adds up."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
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
        )


class Trainer:
    """Owns the optimizer of a `TrainedModel`. Same state and same rollouts give the same bits on CPU."""

    def __init__(self, model: TrainedModel, config: TrainingConfig) -> None:
        self._model = model
        self._ranks = model.ranks
        self._config = config
        self._objective = objective_named(config.objective)
        self._dealer = Dealer(config, model.cost.layers, model.device, model.ranks)
        self._parameters = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
        self._optimizer = Optimizer(self._parameters, config)
        self.steps = 0
        """Optimizer steps since the run began, which the learning rate follows."""

    def train_round(self, rollouts: Iterable[Rollout] = (), rewards: Sequence[float] | None = None) -> RoundStats:
        """Take the round's `steps_per_round` steps on contiguous mini-batches of its prompts.

        `rollouts` come in training order: by task index, then sample. They may be an iterator that waits for rollouts:
        each is trained as soon as its micro-batch is full. All G samples of a prompt are in their prompt's mini-batch.
        `rewards`, one per rollout, are for grpo only, which needs the whole round before it starts. Ranks other than 0
        give neither.
        Raises ContractError for rollouts out of order, of several rounds or none at all. After an error the weights may
        be between two rounds: load a state before going on. Raises ModelError when every step had to be skipped.
        """
        self._ranks.send_order(Order.TRAIN)
        tally = _Tally()
        mini_batches = self._dealer.mini_batches(rollouts, rewards)
        if self._config.objective == "grpo":
            mini_batches = self._with_old_log_probs(mini_batches, tally)
        for mini_batch in mini_batches:
            self._train_step(mini_batch, tally)
        return tally.stats(self._optimizer.learning_rate)

    def _with_old_log_probs(self, mini_batches: Iterable[Iterable[Turn]], tally: _Tally) -> Iterator[Iterator[Turn]]:
        """The same with log-probabilities under the weights of the round's start, for which all of it is needed."""
        held: list[list[Turn]] = []
        for mini_batch in mini_batches:
            held.append(turns := [])
            for turn in mini_batch:
                started = time.perf_counter()
                with torch.no_grad():
                    losses = self._model.token_losses(turn.batch, nll, turn.targets, self._config.tau_t)
                turns.append(replace(turn, targets=replace(turn.targets, old_log_probs=losses.log_probs)))
                tally.seconds += time.perf_counter() - started
        return (iter(turns) for turns in held)

    def _train_step(self, mini_batch: Iterable[Turn], tally: _Tally) -> None:
        """Accumulate the gradient of the mini-batch's summed loss, then update."""
        self._optimizer.clear_gradients()
        total = torch.zeros((), device=self._model.device)
        log_probs: list[tuple[Turn, torch.Tensor]] = []
        response_lengths: list[int] = []
        for turn in mini_batch:
            started = time.perf_counter()
            losses = self._model.token_losses(turn.batch, self._objective, turn.targets, self._config.tau_t)
            counts = float(bool(turn.places))
            (losses.loss * counts).backward()  # type: ignore[no-untyped-call]
            total += losses.loss.detach() * counts
            log_probs.append((turn, losses.log_probs))
            response_lengths.extend(turn.response_lengths)
            tally.fed_tokens += sum(turn.lengths)
            tally.micro_batches += turn.micro_batches
            tally.seconds += time.perf_counter() - started
        started = time.perf_counter()
        tokens = sum(response_lengths)
        loss, nll_sums = self._sums(float(total), log_probs, len(response_lengths))
        norm = self._update(tokens)
        if math.isfinite(norm):
            tally.losses.append(loss / tokens)
            tally.norms.append(norm)
        else:
            tally.skipped_steps += 1
        tally.nll.extend((nll_sums / np.array(response_lengths)).tolist())
        tally.response_tokens += tokens
        tally.seconds += time.perf_counter() - started

    def _sums(
        self, loss: float, log_probs: Sequence[tuple[Turn, torch.Tensor]], count: int
    ) -> tuple[float, NDArray[np.float64]]:
        """Of all ranks: the step's summed loss, and the NLL of each of its `count` sequences."""
        sums = np.zeros(1 + count)
        sums[0] = loss
        for turn, of_tokens in log_probs:
            if turn.places:
                starts = np.cumsum([0, *turn.batch.response_lengths[:-1]])
                sums[1 + np.array(turn.places)] = -np.add.reduceat(of_tokens.double().cpu().numpy(), starts)
        self._ranks.all_reduce_sum(torch.from_numpy(sums))
        return float(sums[0]), sums[1:]

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
