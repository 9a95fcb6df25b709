"""What an algorithm is: its loss over tokens, what it needs for that, and how answers become a signal.

Settings read these declarations without torch, so that an algorithm's file imports torch where it computes.

Legend of shapes: N response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What is known about the tokens whose loss is asked."""

    tokens: torch.Tensor
    """[N] int64, the sampled tokens."""
    old_log_probs: torch.Tensor | None = None
    """[N] under the weights at the round's start, for an algorithm that needs them."""
    signals: torch.Tensor | None = None
    """[N] the signal of the rollout that each token belongs to, for an algorithm that has signals."""

    def __getitem__(self, rows: slice) -> Targets:
        return Targets(
            self.tokens[rows],
            None if self.old_log_probs is None else self.old_log_probs[rows],
            None if self.signals is None else self.signals[rows],
        )


class TokenLosses(NamedTuple):
    """[N] each."""

    loss: torch.Tensor
    log_probs: torch.Tensor
    """log pi(o | prefix; tau_t) of the sampled tokens."""


TokenLoss = Callable[["torch.Tensor", Targets], TokenLosses]
"""(logits / tau_t [N, V], targets) -> losses."""


@dataclass(frozen=True, slots=True)
class Group:
    """All answers to one prompt in one round. Producer: the loop. Consumer: an algorithm's `signals`."""

    reference: str
    """The reference answer; empty where the data set has none."""
    answers: tuple[str, ...]
    """[G] texts, by sample."""


class Signal(NamedTuple):
    """What one answer is worth."""

    weight: float
    """What the loss sees at each of the answer's tokens, such as an advantage."""
    reward: float
    """What people see in the records."""


AreCorrect = Callable[[Sequence[tuple[str, str]]], list[bool]]
"""Grades (answer, reference) pairs within limits of time and memory."""

GroupSignals = Callable[[Group, AreCorrect], list[Signal]]
"""[G] signals, by sample."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One way to learn from rollouts.

    NLL = Algorithm("nll", losses=nll)      an algorithm needs no more than a name and a loss
    """

    name: str
    """As in training.algorithm."""
    losses: TokenLoss
    needs_whole_round: bool = False
    """Whether the first step waits until the whole round is there; else each micro-batch is trained as it fills."""
    needs_old_log_probs: bool = False
    """Whether the loss compares with the weights at the round's start; needs the whole round."""
    smallest_group: int = 1
    """Fewest answers to a prompt (sampling.rollouts_per_prompt) that make sense."""
    needs_references: bool = False
    """Whether every prompt must have a reference answer."""
    signals: GroupSignals | None = None
    """How the answers to a prompt become signals; None: every answer counts alike."""

    def __post_init__(self) -> None:
        if self.needs_old_log_probs and not self.needs_whole_round:
            raise ValueError(f"{self.name} needs old log-probabilities, and so the whole round")
