"""Optimizer steps on one round's rollouts. Knows neither where rollouts come from nor where weights go.

Each step minimises the mean of the objective over the step's own response tokens: sums are backpropagated micro-batch
by micro-batch, and the gradient is divided by the count once it is known. So the step does not depend on how its
sequences were packed, unlike a mean of micro-batch means (as in verl, which the paper's code builds on), and training
may start while rollouts still arrive.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import structlog
import torch
from torch.nn.utils import get_total_norm

from learner import packing
from learner.config import TrainingConfig
from learner.model import TrainedModel
from learner.objectives import Targets, group_advantages, nll, objective_named
from learner.packing import MicroBatch
from learner.schedule import learning_rate
from services.contracts import Rollout
from services.errors import CheckpointError, ContractError, ModelError

log = structlog.get_logger()

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
CLIP_EPSILON = 1e-6
"""Added to the norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does."""

Work = tuple[MicroBatch, Targets]


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
    log_probs: list[torch.Tensor] = field(default_factory=list)
    response_lengths: list[int] = field(default_factory=list)
    fed_tokens: int = 0
    micro_batches: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0

    def stats(self, rate: float) -> RoundStats:
        """The round as a whole; ModelError when no step of it could be taken."""
        if not self.response_lengths:
            raise ContractError("a round needs at least one rollout, got none")
        if not self.losses:
            raise ModelError(
                f"the gradient of all {self.skipped_steps} steps of the round is not finite: the weights have diverged",
                hint="start from an earlier checkpoint with a lower training.learning_rate",
            )
        responses = sum(self.response_lengths)
        return RoundStats(
            loss=float(np.mean(self.losses)),
            grad_norm=float(np.mean(self.norms)),
            learning_rate=rate,
            steps=len(self.losses) + self.skipped_steps,
            skipped_steps=self.skipped_steps,
            micro_batches=self.micro_batches,
            prompt_tokens=self.fed_tokens - responses + len(self.response_lengths),
            response_tokens=responses,
            seconds=self.seconds,
            nll=self._nll(),
        )

    def _nll(self) -> tuple[float, ...]:
        starts = np.cumsum([0, *self.response_lengths[:-1]])
        sums = np.add.reduceat(torch.cat(self.log_probs).double().cpu().numpy(), starts)
        return tuple((-sums / np.array(self.response_lengths)).tolist())


class Trainer:
    """Owns the optimizer of a `TrainedModel`. Same state and same rollouts give the same bits on CPU."""

    def __init__(self, model: TrainedModel, config: TrainingConfig) -> None:
        self._model = model
        self._config = config
        self._objective = objective_named(config.objective)
        self._parameters = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            list(self._parameters.values()),
            lr=config.learning_rate,
            betas=ADAM_BETAS,
            eps=ADAM_EPSILON,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.steps = 0
        """Optimizer steps since the run began, which the learning rate follows."""

    def train_round(self, rollouts: Iterable[Rollout], rewards: Sequence[float] | None = None) -> RoundStats:
        """Take the round's `steps_per_round` steps on contiguous mini-batches of its prompts.

        `rollouts` come in training order: by task index, then sample. They may be an iterator that waits for rollouts:
        each is trained as soon as its micro-batch is full. All G samples of a prompt are in their prompt's mini-batch.
        `rewards`, one per rollout, are for grpo only, which needs the whole round before it starts.
        Raises ContractError for rollouts out of order, of several rounds or none at all. After an error the weights may
        be between two rounds: load a state before going on. Raises ModelError when every step had to be skipped.
        """
        tally = _Tally()
        if self._config.objective == "grpo":
            held = list(rollouts)
            started = time.perf_counter()
            mini_batches = self._grpo_mini_batches(held, rewards)
            tally.seconds += time.perf_counter() - started
        elif rewards is None:
            mini_batches = self._mini_batches(rollouts)
        else:
            raise ValueError(f"objective {self._config.objective} takes no rewards")
        for mini_batch in mini_batches:
            self._train_step(mini_batch, tally)
        return tally.stats(self._optimizer.param_groups[0]["lr"])

    def _mini_batches(self, rollouts: Iterable[Rollout]) -> Iterator[Iterator[Work]]:
        """Lazily: per optimizer step, its micro-batches on the device."""
        for batches in self._packed(rollouts):
            yield ((batch, Targets(batch.targets)) for batch in batches)

    def _packed(self, rollouts: Iterable[Rollout]) -> Iterator[Iterator[MicroBatch]]:
        prompts_per_step = self._config.prompts_per_round // self._config.steps_per_round
        for _, group in groupby(_in_order(rollouts), key=lambda rollout: rollout.index // prompts_per_step):
            sequences = (packing.Sequence(r.prompt_tokens, r.response_tokens) for r in group)
            batches = packing.pack(sequences, self._config.micro_batch_tokens)
            yield (batch.to(self._model.device) for batch in batches)

    def _grpo_mini_batches(self, rollouts: list[Rollout], rewards: Sequence[float] | None) -> Iterator[Iterator[Work]]:
        """The same with advantages, and with log-probabilities under the weights of the round's start."""
        if rewards is None or len(rewards) != len(rollouts):
            raise ValueError(f"grpo needs one reward per rollout, {len(rollouts)} in all")
        advantages = iter(group_advantages(rewards, [rollout.index for rollout in rollouts]))
        steps: list[list[Work]] = []
        for batches in self._packed(rollouts):
            steps.append([])
            for batch in batches:
                with torch.no_grad():
                    losses = self._model.losses(batch, nll, Targets(batch.targets), self._config.tau_t)
                per_rollout = torch.tensor([next(advantages) for _ in batch.response_lengths])
                per_token = per_rollout.repeat_interleave(torch.tensor(batch.response_lengths))
                targets = Targets(batch.targets, losses.log_probs, per_token.to(self._model.device))
                steps[-1].append((batch, targets))
        return (iter(step) for step in steps)

    def _train_step(self, mini_batch: Iterator[Work], tally: _Tally) -> None:
        """Accumulate the gradient of the mini-batch's summed loss, then update."""
        self._optimizer.zero_grad()
        total = torch.zeros((), device=self._model.device)
        tokens = 0
        for batch, targets in mini_batch:
            started = time.perf_counter()
            losses = self._model.losses(batch, self._objective, targets, self._config.tau_t)
            losses.loss.backward()  # type: ignore[no-untyped-call]
            total += losses.loss.detach()
            tokens += targets.tokens.numel()
            tally.log_probs.append(losses.log_probs)
            tally.response_lengths.extend(batch.response_lengths)
            tally.fed_tokens += sum(batch.lengths)
            tally.micro_batches += 1
            tally.seconds += time.perf_counter() - started
        started = time.perf_counter()
        norm = self._update(tokens)
        if math.isfinite(norm):
            tally.losses.append(float(total) / tokens)
            tally.norms.append(norm)
        else:
            tally.skipped_steps += 1
        tally.seconds += time.perf_counter() - started

    def _update(self, tokens: int) -> float:
        """Divide the gradient by the tokens, clip it, step; the norm before clipping.

        A gradient that is not finite would ruin every weight, so such a step is left out.
        """
        grads = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = get_total_norm(grads) / tokens
        factor = torch.clamp(self._config.max_grad_norm / (norm + CLIP_EPSILON), max=1.0) / tokens
        for grad in grads:
            grad.mul_(factor)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._config, self.steps)
        norm_before = float(norm)
        if math.isfinite(norm_before):
            self._optimizer.step()
        else:
            log.warning("step_skipped", step=self.steps, grad_norm=norm_before)
        self._optimizer.zero_grad()
        self.steps += 1
        return norm_before

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Weights, optimizer state and step count as a flat dict of tensors; they are the live ones, not copies."""
        state = {f"model.{name}": p.detach() for name, p in self._parameters.items()}
        for name, p in self._parameters.items():
            for key, value in self._optimizer.state.get(p, {}).items():
                state[f"optimizer.{key}.{name}"] = value
        state["steps"] = torch.tensor(self.steps)
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue exactly where `state_dict` was taken. Raises CheckpointError when it is another model's."""
        weights = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
        expected = {name: p.shape for name, p in self._parameters.items()}
        if {name: value.shape for name, value in weights.items()} != expected or "steps" not in state:
            raise CheckpointError(
                "the checkpoint's weights are not those of the model by name and shape",
                hint="model.path must stay the same for the life of a run",
            )
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for place, name in enumerate(self._parameters):
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (value := state.get(f"optimizer.{key}.{name}")) is not None:
                    moments.setdefault(place, {})[key] = value.clone()
        with torch.no_grad():
            for name, p in self._parameters.items():
                p.copy_(weights[name])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.steps = int(state["steps"])


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
