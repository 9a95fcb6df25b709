"""Finds signs that the model collapses: measures every round and compares it with the run's first rounds.

Self-training sharpens the model by design, so falling entropy alone is no sign. The signs are responses that are cut
off at the limit, repeat themselves or are all alike, and token entropy near zero or far above that of the start. Wrong
answers that are well formed are not a sign: finding them takes an evaluation.

Legend of shapes: R response tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray

from learner.algorithms.base import Targets
from learner.algorithms.entropy import entropy
from learner.algorithms.nll import nll
from learner.model import packing
from learner.model.trained_model import TrainedModel
from services.contracts import Rollout, RoundMetrics

PROBE_TOKENS = 4096
"""Tokens of a round, prompts included, that probe the new weights: in two forward passes."""
NGRAM = 4
BASELINE_ROUNDS = 3

MAX_TRUNCATED = 0.5
"""Share of responses cut off at the limit, if the run began with less than half of that."""
MAX_REPETITION = 0.5
"""Share of 4-grams that occurred before in the same response; ordinary worked solutions have under 0.2."""
MIN_DISTINCT = 0.1
"""Distinct responses per response, if the run began with more than three times that."""
MIN_ENTROPY = 0.02
"""Lower limit of token entropy at temperature 1, relative to the first rounds. Sharpening stays above; a model in a
loop falls below."""
MAX_ENTROPY = 3.0
"""Upper limit, relative to the first rounds: self-training at tau_s < tau_t only lowers the entropy."""
LENGTH_FACTOR = 4.0
"""Mean response length may grow or shrink by this factor."""


@dataclass(frozen=True, slots=True)
class Health:
    """Health of one round; its fields are in the round's line of metrics.jsonl."""

    response_length_mean: float
    truncated_ratio: float
    repetition_ratio: float
    """Mean over responses of the share of 4-grams that occurred before in the same response."""
    distinct_ratio: float
    """Distinct responses per response."""
    entropy: float
    """Nats per token of the new weights at temperature 1, at the positions of the round's responses."""
    nll_tau_1: float
    """Negative log-likelihood per token of the responses under the new weights, at temperature 1."""
    nll_tau_s: float
    """The same at the round's sampling temperature."""


def measure_health(model: TrainedModel, rollouts: Sequence[Rollout]) -> Health:
    """Health of a round that was just trained: from all its responses, and from the new weights on the first ones."""
    responses = [rollout.response_tokens for rollout in rollouts]
    return Health(
        response_length_mean=float(np.mean([tokens.size for tokens in responses])),
        truncated_ratio=float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
        repetition_ratio=float(np.mean([repetition(tokens) for tokens in responses])),
        distinct_ratio=len({tokens.tobytes() for tokens in responses}) / len(responses),
        **_probe(model, rollouts),
    )


def repetition(tokens: NDArray[np.int32]) -> float:
    """[R] -> share of 4-grams that occurred before; 0 for responses of fewer than five tokens."""
    count = tokens.size - NGRAM + 1
    if count < 2:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(tokens, NGRAM)
    return 1.0 - len(np.unique(grams, axis=0)) / count


def _probe(model: TrainedModel, rollouts: Sequence[Rollout]) -> dict[str, float]:
    sequences = [packing.Sequence(rollout.prompt_tokens, rollout.response_tokens) for rollout in rollouts]
    total_tokens = np.cumsum([sequence.fed_tokens for sequence in sequences])
    count = max(1, sum(1 for _ in takewhile(lambda tokens: tokens <= PROBE_TOKENS, total_tokens)))
    batch = packing.pack_sequences(sequences[:count]).to(model.device)
    targets = Targets(batch.targets)
    tokens = batch.targets.numel()
    with torch.no_grad():
        plain = model.leader_token_losses(batch, entropy, targets, 1.0)
        sampling = model.leader_token_losses(batch, nll, targets, rollouts[0].temperature)
    return {
        "entropy": float(plain.loss) / tokens,
        "nll_tau_1": -float(plain.log_probs.mean()),
        "nll_tau_s": float(sampling.loss) / tokens,
    }


def find_signs(first: Sequence[Health], now: Health) -> list[str]:
    """What is wrong with a round compared with the `first` ones: sentences with value and limit."""
    start = {name: float(np.mean([getattr(health, name) for health in first])) for name in asdict(now)}
    found = []
    if now.truncated_ratio > MAX_TRUNCATED > 2 * start["truncated_ratio"]:
        found.append(f"{now.truncated_ratio:.0%} of the responses are cut off, limit {MAX_TRUNCATED:.0%}")
    if now.repetition_ratio > MAX_REPETITION > start["repetition_ratio"]:
        found.append(f"responses repeat {now.repetition_ratio:.0%} of their 4-grams, limit {MAX_REPETITION:.0%}")
    if now.distinct_ratio < MIN_DISTINCT < start["distinct_ratio"] / 3:
        found.append(f"only {now.distinct_ratio:.0%} of the responses are distinct, limit {MIN_DISTINCT:.0%}")
    low, high = MIN_ENTROPY * start["entropy"], MAX_ENTROPY * start["entropy"]
    if not low <= now.entropy <= high:
        found.append(f"token entropy is {now.entropy:.3g} nats, limits {low:.3g} and {high:.3g}")
    shortest = start["response_length_mean"] / LENGTH_FACTOR
    longest = start["response_length_mean"] * LENGTH_FACTOR
    if not shortest <= now.response_length_mean <= longest:
        found.append(
            f"mean response length is {now.response_length_mean:.1f} tokens, limits {shortest:.1f} and {longest:.1f}"
        )
    return found


class CollapseMonitor:
    """Compares every round with the run's first ones, and calls `alarm` with the signs of collapse.

    monitor = CollapseMonitor(folder.rounds())          examines recorded rounds again, so a resume changes nothing
    monitor.examine(model, rollouts)                    (Health(...), ["token entropy is ..."])
    monitor.newest_healthy([8, 10, 12])                 10: the newest of these versions whose round showed no sign
    """

    def __init__(self, recorded: Iterable[RoundMetrics]) -> None:
        self._first: list[Health] = []
        self._unhealthy: set[int] = set()
        for metrics in recorded:
            known = metrics.model_dump()
            if all(known.get(field.name) is not None for field in fields(Health)):
                self._compare(Health(**{field.name: known[field.name] for field in fields(Health)}), metrics.round)

    def examine(self, model: TrainedModel, rollouts: Sequence[Rollout]) -> tuple[Health, list[str]]:
        """The round's health, and its signs of collapse."""
        health = measure_health(model, rollouts)
        return health, self._compare(health, rollouts[0].round)

    def newest_healthy(self, versions: Iterable[int]) -> int | None:
        """The newest of these versions without a sign of collapse; None when all have one."""
        return max((version for version in versions if version not in self._unhealthy), default=None)

    def _compare(self, health: Health, round_: int) -> list[str]:
        """Signs of the version that the round produced. The first rounds are the baseline and have none."""
        self._unhealthy.discard(round_ + 1)  # a rollback may train it again
        if len(self._first) < BASELINE_ROUNDS:
            self._first.append(health)
            return []
        found = find_signs(self._first, health)
        if found:
            self._unhealthy.add(round_ + 1)
        return found
