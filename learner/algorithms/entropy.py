"""EM-FT: the entropy of the model's predictions along its own answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.algorithms.base import Algorithm, Targets, TokenLosses

if TYPE_CHECKING:
    import torch


def entropy(logits_NV: torch.Tensor, targets: Targets) -> TokenLosses:
    """H = -sum_v p_v log p_v, p = softmax(z / tau_t), at every sampled position (arXiv 2505.15134, "EM-FT").

    The sampled tokens only say where entropy is measured; the gradient does not flow through the sampling.
    """
    from torch.nn import functional

    log_p_NV = functional.log_softmax(logits_NV, dim=-1)
    loss = -(log_p_NV.exp() * log_p_NV).sum(dim=-1)
    return TokenLosses(loss, log_p_NV.gather(-1, targets.tokens[:, None])[:, 0])


ENTROPY = Algorithm("entropy", losses=entropy)
