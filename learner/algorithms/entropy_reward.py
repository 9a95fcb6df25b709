"""RENT: an answer earns more the lower the entropy of the model's predictions along it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.algorithms.base import Targets
from learner.algorithms.entropy import entropy
from learner.algorithms.grpo import with_grpo_loss

if TYPE_CHECKING:
    import torch


def negative_entropy(logits_NV: torch.Tensor, targets: Targets) -> torch.Tensor:
    """[N] sum_v p_v log p_v  (arXiv 2505.22660)."""
    return -entropy(logits_NV, targets).loss


ENTROPY_REWARD = with_grpo_loss("entropy_reward", score=negative_entropy)
