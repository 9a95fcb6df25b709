"""Power sampling as the teacher: NLL on one answer of each prompt, drawn as if from the sequence distribution p^ALPHA.

Answers come from p; of G of them one is drawn in proportion to p^(ALPHA - 1): importance resampling, which tends to
p^ALPHA as G grows. So sample with tau_s = tau_t and max_staleness = 0, and p is what the answers came from. A low
temperature sharpens each token alone, the power sharpens whole answers.
"""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING

from learner.algorithms.base import Algorithm, ScoredGroup, Signal, Targets
from learner.algorithms.nll import nll
from learner.algorithms.vote_nll import weighted_nll

if TYPE_CHECKING:
    import torch

ALPHA = 4.0
"""As in the experiments of arXiv 2510.14901, which samples from p^ALPHA."""


def log_probs(logits_NV: torch.Tensor, targets: Targets) -> torch.Tensor:
    """[N] log p(o | prefix)."""
    return nll(logits_NV, targets).log_probs


def signals(group: ScoredGroup) -> list[Signal]:
    """1 for the one that is drawn by softmax((ALPHA - 1) log p(answer)), else 0  (arXiv 2605.04542)."""
    highest = max(group.totals)
    weights = [math.exp((ALPHA - 1) * (total - highest)) for total in group.totals]
    (drawn,) = Random(group.seed).choices(range(len(weights)), weights)
    return [Signal(float(sample == drawn), float(sample == drawn)) for sample in range(len(weights))]


POWER = Algorithm(
    "power",
    losses=weighted_nll,
    needs_whole_round=True,
    smallest_group=2,
    score=log_probs,
    score_signals=signals,
    counts_kept_tokens=True,
)
