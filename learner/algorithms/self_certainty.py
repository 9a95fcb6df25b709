"""Intuitor: an answer earns the divergence of the model's predictions along it from the uniform distribution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from learner.algorithms.base import Targets
from learner.algorithms.grpo import with_grpo_loss

if TYPE_CHECKING:
    import torch


def certainty(logits_NV: torch.Tensor, targets: Targets) -> torch.Tensor:
    """[N] KL(U || p) = -log V - (1 / V) sum_v log p_v, U uniform over the vocabulary  (arXiv 2505.19590)."""
    vocabulary = logits_NV.shape[-1]
    return logits_NV.logsumexp(dim=-1) - logits_NV.mean(dim=-1) - math.log(vocabulary)


SELF_CERTAINTY = with_grpo_loss("self_certainty", score=certainty)
