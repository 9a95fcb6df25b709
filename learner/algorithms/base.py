"""What an algorithm is: its loss over tokens, what it needs for that, and how answers become a signal.

Settings read these declarations without torch, so that an algorithm's file imports torch where it computes.

Legend of shapes: N response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

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


TokenScore = Callable[["torch.Tensor", Targets], "torch.Tensor"]
"""(logits / tau_t [N, V], targets) -> [N] what an algorithm wants to know of each token before it trains."""


@dataclass(frozen=True, slots=True)
class Group:
    """All answers to one prompt in one round. Producer: the loop. Consumer: an algorithm's `signals`."""

    reference: str
    """The reference answer; empty where the data set has none."""
    answers: tuple[str, ...]
    """[G] texts, by sample."""
    seed: int = 0
    """What an algorithm draws with: the group's own, and the same when the learner does the round again."""


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """The scores of one prompt's answers. Producer: the trainer. Consumer: an algorithm's `score_signals`."""

    totals: tuple[float, ...]
    """[G] sums over each answer's tokens of the algorithm's `score`, under the weights at the round's start."""
    tokens: tuple[int, ...]
    """[G] length of each answer."""
    seed: int = 0
    """As in `Group`."""

    @property
    def means(self) -> list[float]:
        """[G] scores per token."""
        return [total / tokens for total, tokens in zip(self.totals, self.tokens, strict=True)]


class Signal(NamedTuple):
    """What one answer is worth."""

    weight: float
    """What the loss sees at each of the answer's tokens, such as an advantage."""
    reward: float
    """What people see in the records."""


class Judge(Protocol):
    """What can be said of answers' texts, within limits of time and memory."""

    def are_correct(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether each answer equals its reference, of (answer, reference) pairs."""

    def classes(self, answers: Sequence[str]) -> list[int | None]:
        """[G] equal answers have the same number, classes are counted from 0 in order of their first answer; None: the
        text has no answer that can be compared."""


GroupSignals = Callable[[Group, Judge], list[Signal]]
"""[G] signals, by sample."""

ScoreSignals = Callable[[ScoredGroup], list[Signal]]
"""[G] signals, by sample."""


def group_seed(position: int, responses: Iterable[NDArray[np.int32]]) -> int:
    """Of the group of these response tokens, at this position of its round: 0 <= seed < 2**63."""
    digest = blake2b(position.to_bytes(8, "little"), digest_size=8)
    for tokens in responses:
        digest.update(len(tokens).to_bytes(8, "little") + tokens.astype("<i4").tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1


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
    """How the texts of a prompt's answers become signals; None here and for `score_signals`: all answers count alike.
    """
    score: TokenScore | None = None
    """What `score_signals` need; asked of the weights at the round's start, so the whole round is needed."""
    score_signals: ScoreSignals | None = None
    """How the scores of a prompt's answers become signals."""
    counts_kept_tokens: bool = False
    """Whether answers of weight 0 are left out of the tokens that a step's loss is divided by."""

    @property
    def has_signals(self) -> bool:
        return self.signals is not None or self.score_signals is not None

    @property
    def needs_first_pass(self) -> bool:
        """Whether the weights at the round's start are asked about all tokens before the first step."""
        return self.needs_old_log_probs or self.score is not None

    def __post_init__(self) -> None:
        if self.needs_first_pass and not self.needs_whole_round:
            raise ValueError(f"{self.name} asks the weights at the round's start, and so needs the whole round")
        if (self.score is None) != (self.score_signals is None) or (self.signals and self.score_signals):
            raise ValueError(f"{self.name} has signals from texts, or a score and signals from it")
