"""Signs that the model collapses: measured after every round, judged against the run's first rounds. Knows no queue.

Self-training sharpens the model by design, so falling entropy alone is no alarm. The signs are those of text that has
stopped being answers: cut off at the limit, repeating itself, all alike, or from a model that no longer hesitates
anywhere (or everywhere). A model that drifts to wrong answers in good shape shows none of them: that takes an
evaluation.

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
"""Prompt and response tokens of a round that the new weights are probed with: two forward passes of so many."""
NGRAM = 4
BASELINE_ROUNDS = 3

MAX_TRUNCATED = 0.5
"""Share of responses cut off at the limit, where the run began with less than half as many."""
MAX_REPETITION = 0.5
"""Share of a response's 4-grams that it has said before; ordinary worked solutions have under 0.2."""
MIN_DISTINCT = 0.1
"""Distinct responses per response, where the run began with more than three times as many."""
MIN_ENTROPY = 0.02
"""Of the first rounds' token entropy at temperature 1: sharpening leaves more, a loop leaves nothing."""
MAX_ENTROPY = 3.0
"""Of the first rounds' token entropy: self-training at tau_s < tau_t only ever lowers it."""
LENGTH_FACTOR = 4.0
"""Mean response length may grow or shrink so many times over."""


@dataclass(frozen=True, slots=True)
class Health:
    """One round's; the fields of its line in metrics.jsonl."""

    response_length_mean: float
    truncated_ratio: float
    repetition_ratio: float
    """Mean over responses of the share of 4-grams that occurred before in the same response."""
    distinct_ratio: float
    """Distinct responses per response."""
    entropy: float
    """Nats per token of the new weights at temperature 1, where the round's responses lead."""
    nll_tau_1: float
    """Of the round's responses under the new weights at temperature 1, per token."""
    nll_tau_s: float
    """The same at the round's sampling temperature."""


def measure(model: TrainedModel, rollouts: Sequence[Rollout]) -> Health:
    """Health of a round that was just trained: of all its responses, and of the weights on the first of them."""
    responses = [rollout.response_tokens for rollout in rollouts]
    return Health(
        response_length_mean=float(np.mean([tokens.size for tokens in responses])),
        truncated_ratio=float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
        repetition_ratio=float(np.mean([repetition(tokens) for tokens in responses])),
        distinct_ratio=len({tokens.tobytes() for tokens in responses}) / len(responses),
        **_probe(model, rollouts),
    )


def repetition(tokens: NDArray[np.int32]) -> float:
    """[R] -> share of the 4-grams that occurred before; 0 for responses of fewer than five tokens."""
    count = tokens.size - NGRAM + 1
    if count < 2:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(tokens, NGRAM)
    return 1.0 - len(np.unique(grams, axis=0)) / count


def _probe(model: TrainedModel, rollouts: Sequence[Rollout]) -> dict[str, float]:
    sequences = [packing.Sequence(rollout.prompt_tokens, rollout.response_tokens) for rollout in rollouts]
    fed = np.cumsum([sequence.fed_tokens for sequence in sequences])
    count = max(1, sum(1 for _ in takewhile(lambda places: places <= PROBE_TOKENS, fed)))
    batch = packing.lay_out(sequences[:count]).to(model.device)
    targets = Targets(batch.targets)
    tokens = batch.targets.numel()
    with torch.no_grad():
        plain = model.losses(batch, entropy, targets, 1.0)
        sampling = model.losses(batch, nll, targets, rollouts[0].temperature)
    return {
        "entropy": float(plain.loss) / tokens,
        "nll_tau_1": -float(plain.log_probs.mean()),
        "nll_tau_s": float(sampling.loss) / tokens,
    }


def signs(first: Sequence[Health], now: Health) -> list[str]:
    """What is wrong with a round compared with the `first` ones, in words with value and limit."""
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


class Guard:
    """Compares every round with the run's first ones.

    guard = Guard(folder.rounds())              after a resume too: what is recorded is examined again
    guard.examine(model, rollouts)              (Health(...), ["token entropy is ..."])
    guard.healthy([8, 10, 12])                  10: the newest of these versions whose round showed no sign
    """

    def __init__(self, recorded: Iterable[RoundMetrics]) -> None:
        self._first: list[Health] = []
        self._sick: set[int] = set()
        for metrics in recorded:
            known = metrics.model_dump()
            if all(known.get(field.name) is not None for field in fields(Health)):
                self._judge(Health(**{field.name: known[field.name] for field in fields(Health)}), metrics.round)

    def examine(self, model: TrainedModel, rollouts: Sequence[Rollout]) -> tuple[Health, list[str]]:
        """The round's health, and its signs of collapse."""
        health = measure(model, rollouts)
        return health, self._judge(health, rollouts[0].round)

    def healthy(self, versions: Iterable[int]) -> int | None:
        """The newest of these versions that showed no sign of collapse; None when they all did."""
        return max((version for version in versions if version not in self._sick), default=None)

    def _judge(self, health: Health, round_: int) -> list[str]:
        """Signs of the version that the round made; the first rounds are what the others are compared with."""
        self._sick.discard(round_ + 1)  # made again after going back
        if len(self._first) < BASELINE_ROUNDS:
            self._first.append(health)
            return []
        found = signs(self._first, health)
        if found:
            self._sick.add(round_ + 1)
        return found
