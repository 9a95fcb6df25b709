"""GRPO with verified rewards: an answer is worth what it earns above the other answers to its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from learner.algorithms.base import (
    Algorithm,
    Group,
    GroupSignals,
    Judge,
    ScoredGroup,
    Signal,
    Targets,
    TokenLosses,
    TokenScore,
)

if TYPE_CHECKING:
    import torch

CLIP = 0.2
"""The ratio is clipped to 1 - CLIP ... 1 + CLIP (verl's default, used by the paper)."""

ADVANTAGE_EPSILON = 1e-6
"""Keeps the advantage finite where all rewards of a group agree."""


def grpo(logits_NV: torch.Tensor, targets: Targets) -> TokenLosses:
    """Without KL: -min(r A, clip(r, 1 - CLIP, 1 + CLIP) A), r = pi(o) / pi_old(o)  (arXiv 2402.03300, eq. 3).

    Summed over tokens and divided by the step's response tokens ("token-mean", as verl does), not per response first.
    """
    import torch
    from torch.nn import functional

    if targets.old_log_probs is None or targets.signals is None:
        raise ValueError("grpo needs the old log-probabilities and the advantages")
    log_probs = -functional.cross_entropy(logits_NV, targets.tokens, reduction="none")
    ratio = (log_probs - targets.old_log_probs).exp()
    clipped = ratio.clamp(1.0 - CLIP, 1.0 + CLIP)
    loss = -torch.minimum(ratio * targets.signals, clipped * targets.signals)
    return TokenLosses(loss, log_probs)


def advantages(rewards: Sequence[float]) -> list[float]:
    """[G] A_i = (r_i - mean) / (std + ADVANTAGE_EPSILON) over one prompt's rewards  (arXiv 2402.03300, section 4.1.2).

    The deviation has the n - 1 denominator, as in verl. A group of one has nothing to be compared with: its advantage
    is 0.
    """
    mean = sum(rewards) / len(rewards)
    variance = sum((reward - mean) ** 2 for reward in rewards) / max(len(rewards) - 1, 1)
    deviation = variance**0.5 + ADVANTAGE_EPSILON
    return [(reward - mean) / deviation for reward in rewards]


def relative(rewards: Sequence[float]) -> list[Signal]:
    """[G] signals whose weights are the advantages of these rewards."""
    return [Signal(*pair) for pair in zip(advantages(rewards), rewards, strict=True)]


def signals(group: Group, judge: Judge) -> list[Signal]:
    """An answer earns 1 when it equals the reference answer, else 0; its weight is its advantage."""
    return relative([float(ok) for ok in judge.are_correct([(answer, group.reference) for answer in group.answers])])


def by_mean_score(group: ScoredGroup) -> list[Signal]:
    """[G] an answer earns its mean score over tokens; its weight is its advantage."""
    return relative(group.means)


def with_grpo_loss(
    name: str,
    *,
    signals: GroupSignals | None = None,
    score: TokenScore | None = None,
    needs_references: bool = False,
) -> Algorithm:
    """An algorithm with this loss and its own rewards: `signals` from texts, or the mean `score` over an answer."""
    return Algorithm(
        name,
        losses=grpo,
        needs_whole_round=True,
        needs_old_log_probs=True,
        smallest_group=2,
        needs_references=needs_references,
        signals=signals,
        score=score,
        score_signals=None if score is None else by_mean_score,
    )


GRPO = with_grpo_loss("grpo", signals=signals, needs_references=True)
