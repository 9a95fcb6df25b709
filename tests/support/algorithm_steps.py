"""One optimizer step of an algorithm on a tiny model, and the same step in plain form with transformers' own model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from learner.training.batch_sharding import TrainingSample
from learner.training.trainer import RoundStats, Trainer
from services.contracts import Rollout
from tests.support import tiny_models
from tests.support.plain_model import own_logits, plain_model

PROMPTS, SAMPLES, RATE = 2, 3, 1e-3
GROUPS = [range(start, start + SAMPLES) for start in range(0, PROMPTS * SAMPLES, SAMPLES)]
"""Of the step's rollouts, those of each prompt."""
TOLERANCE = 1e-5
"""One percent of the longest step: AdamW blows rounding up where a gradient is near zero."""

PlainLoss = Callable[[Callable[[int], torch.Tensor], list[torch.Tensor]], torch.Tensor]
"""(i -> log softmax [R, V] of rollout i, token ids [R] of every rollout) -> the loss of the step."""


def rollouts() -> list[Rollout]:
    return tiny_models.rollouts(PROMPTS, samples=SAMPLES)


def own_step(folder: Path, algorithm: str, signals: Sequence[float] = ()) -> tuple[RoundStats, list[torch.Tensor]]:
    """The step as the trainer takes it, with signals from texts where the algorithm has them; stats and weights."""
    config = tiny_models.training(
        algorithm=algorithm, prompts_per_round=PROMPTS, steps_per_round=1, learning_rate=RATE, micro_batch_tokens=30
    )
    trainer = Trainer(tiny_models.load(folder), config)
    given = rollouts()
    stats = trainer.train_round(map(TrainingSample, given, signals or [0.0] * len(given)))
    return stats, [parameter.detach() for parameter in trainer.model.module.parameters()]


def plain_step(folder: Path, loss_of: PlainLoss) -> tuple[float, list[torch.Tensor]]:
    """Loss and weights of the step by its formula; call `own_step` with the same folder first."""
    plain, given = plain_model(folder), rollouts()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=RATE, weight_decay=0.01)
    tokens = [torch.tensor(rollout.response_tokens, dtype=torch.int64) for rollout in given]
    loss = loss_of(lambda index: own_logits(plain, given[index]).log_softmax(-1), tokens)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer.step()
    return loss.item(), [parameter.detach() for parameter in plain.parameters()]


def largest_difference(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def taken(log_p_RV: torch.Tensor, tokens_R: torch.Tensor) -> torch.Tensor:
    """[R] log-probabilities of the tokens that were sampled."""
    return log_p_RV.gather(-1, tokens_R[:, None])[:, 0]


def policy_gradient(rewards: Sequence[float]) -> PlainLoss:
    """GRPO's loss of a first step, where the ratio is 1: -mean(A log pi), A = (r - mean) / (std + 1e-6) by group."""
    weights: list[float] = []
    for group in GROUPS:
        of_group = torch.tensor([rewards[index] for index in group], dtype=torch.float64)
        weights += ((of_group - of_group.mean()) / (of_group.std() + 1e-6)).tolist()

    def loss(log_p: Callable[[int], torch.Tensor], tokens: list[torch.Tensor]) -> torch.Tensor:
        surrogate = []
        for index, weight in enumerate(weights):
            log_pi = taken(log_p(index), tokens[index])
            surrogate.append((log_pi - log_pi.detach()).exp() * weight)
        return -torch.cat(surrogate).mean()

    return loss


def same_step(folder: Path, algorithm: str, plain: PlainLoss, signals: Sequence[float] = ()) -> RoundStats:
    """Assert that the trainer's step is the plain one; what the trainer says of it."""
    stats, ours = own_step(folder, algorithm, signals)
    loss, theirs = plain_step(folder, plain)
    assert abs(stats.loss - loss) <= 1e-5 * abs(loss) + 1e-6
    assert largest_difference(ours, theirs) < TOLERANCE
    return stats
