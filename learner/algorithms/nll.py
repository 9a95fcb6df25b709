"""SePT: the negative log-likelihood of the model's own answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.algorithms.base import Algorithm, Targets, TokenLosses

if TYPE_CHECKING:
    import torch


def nll(logits_NV: torch.Tensor, targets: Targets) -> TokenLosses:
    """-log softmax(z / tau_t)[o]  (arXiv 2510.18814, Algorithm 1)."""
    from torch.nn import functional

    loss = functional.cross_entropy(logits_NV, targets.tokens, reduction="none")
    return TokenLosses(loss, -loss)


NLL = Algorithm("nll", losses=nll)
