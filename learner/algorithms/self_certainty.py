"""Intuitor: an answer earns how far the model's predictions along it are from knowing nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from learner.algorithms.base import Algorithm, ScoredGroup, Signal, Targets
from learner.algorithms.grpo import grpo, relative

if TYPE_CHECKING:
    import torch


def certainty(logits_NV: torch.Tensor, targets: Targets) -> torch.Tensor:
    """[N] KL(U || p) = -log V - (1 / V) sum_v log p_v, U uniform over the vocabulary  (arXiv 2505.19590)."""
    vocabulary = logits_NV.shape[-1]
    return logits_NV.logsumexp(dim=-1) - logits_NV.mean(dim=-1) - math.log(vocabulary)


def signals(group: ScoredGroup) -> list[Signal]:
    """An answer earns its mean over tokens; its weight is its advantage."""
    return relative(group.means)


SELF_CERTAINTY = Algorithm(
    "self_certainty",
    losses=grpo,
    needs_whole_round=True,
    needs_old_log_probs=True,
    smallest_group=2,
    score=certainty,
    score_signals=signals,
)
