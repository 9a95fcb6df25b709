"""RENT: an answer earns the more, the less the model doubts along it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.algorithms.base import Algorithm, ScoredGroup, Signal, Targets
from learner.algorithms.entropy import entropy
from learner.algorithms.grpo import grpo, relative

if TYPE_CHECKING:
    import torch


def negative_entropy(logits_NV: torch.Tensor, targets: Targets) -> torch.Tensor:
    """[N] sum_v p_v log p_v  (arXiv 2505.22660)."""
    return -entropy(logits_NV, targets).loss


def signals(group: ScoredGroup) -> list[Signal]:
    """An answer earns its mean over tokens; its weight is its advantage."""
    return relative(group.means)


ENTROPY_REWARD = Algorithm(
    "entropy_reward",
    losses=grpo,
    needs_whole_round=True,
    needs_old_log_probs=True,
    smallest_group=2,
    score=negative_entropy,
    score_signals=signals,
)
