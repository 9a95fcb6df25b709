"""NLL on the answers that the majority agrees with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.algorithms.base import Algorithm, Group, Judge, Signal, Targets, TokenLosses
from learner.algorithms.majority_vote import winners
from learner.algorithms.nll import nll

if TYPE_CHECKING:
    import torch


def weighted_nll(logits_NV: torch.Tensor, targets: Targets) -> TokenLosses:
    """w * -log softmax(z / tau_t)[o], w the weight of the answer that o belongs to."""
    if targets.signals is None:
        raise ValueError("weighted NLL needs the answers' weights")
    losses = nll(logits_NV, targets)
    return TokenLosses(targets.signals * losses.loss, losses.log_probs)


def signals(group: Group, judge: Judge) -> list[Signal]:
    """An answer weighs 1 in the majority, else 0 (rejection sampling as in STaR, arXiv 2203.14465, with a vote for the
    reference answer)."""
    return [Signal(float(won), float(won)) for won in winners(judge.classes(group.answers))]


VOTE_NLL = Algorithm("vote_nll", losses=weighted_nll, smallest_group=2, signals=signals, counts_kept_tokens=True)
