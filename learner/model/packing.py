"""Lays sequences end to end into micro-batches under a token budget, and deals them to the ranks by what they cost.

Knows neither model nor objective.

A sequence of P prompt and R response tokens takes T = P + R - 1 places: the last one is predicted, never fed.

    prompt   a b c          fed        a b c x y        position   0 1 2 3 4
    response x y z          predicts   . . x y z        rows             2 3 4

Legend of shapes: T tokens fed, N response tokens, S sequences of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from services.errors import ContractError


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """One prompt with its response."""

    prompt_tokens: NDArray[np.int32]
    """[P], P >= 1: the first response token must be predicted from something."""
    response_tokens: NDArray[np.int32]
    """[R], R >= 1."""

    def __post_init__(self) -> None:
        if not self.prompt_tokens.size or not self.response_tokens.size:
            raise ContractError(
                f"a training sequence has at least one prompt and one response token, got "
                f"{self.prompt_tokens.size} and {self.response_tokens.size}",
                hint="give every prompt at least a begin-of-text token",
            )

    @property
    def fed_tokens(self) -> int:
        """Places the sequence takes in a micro-batch."""
        return int(self.prompt_tokens.size + self.response_tokens.size) - 1


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Sequences end to end, for one forward and backward pass."""

    input_ids: torch.Tensor
    """[T] int64."""
    position_ids: torch.Tensor
    """[T] int64, from 0 in every sequence."""
    cu_seqlens: torch.Tensor
    """[S + 1] int32, where sequences start and end: 0, ..., T."""
    rows: torch.Tensor
    """[N] int64, the places whose output predicts a response token."""
    targets: torch.Tensor
    """[N] int64, those response tokens."""
    lengths: tuple[int, ...]
    """S places taken by each sequence; sum T."""
    response_lengths: tuple[int, ...]
    """S response tokens of each sequence; sum N."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on `device`."""
        names = ("input_ids", "position_ids", "cu_seqlens", "rows", "targets")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def turns(sequences: Iterable[Sequence], budget_tokens: int, ranks: int = 1) -> Iterator[list[Sequence]]:
    """What the ranks train at once, in the order of the sequences: at most `budget_tokens` places for each of them.

    Next-fit: a turn is closed by the first sequence that does not fit, so what it holds never depends on what comes
    later, and training may start while sequences still arrive. When n ranks are each too full for a sequence of L
    places they hold more than n (budget - L); below that it fits however the others were dealt. A sequence longer
    than the budget gets a turn of its own.
    """
    held: list[Sequence] = []
    places = longest = 0
    for sequence in sequences:
        longest = max(longest, sequence.fed_tokens)
        places += sequence.fed_tokens
        if held and places > ranks * budget_tokens - (ranks - 1) * longest:
            yield held
            held, places, longest = [], sequence.fed_tokens, sequence.fed_tokens
        held.append(sequence)
    if held:
        yield held


def deal(turn: list[Sequence], budget_tokens: int, ranks: int, cost: Callable[[int], float]) -> list[list[int]]:
    """Each rank's share of a turn: indexes into it, ascending; the last ranks may get none.

    Costliest first, to the rank with the least to do that has room (Graham's LPT rule, within 4/3 of the best where
    there is room): all ranks wait for the slowest. `cost`: of a sequence of so many places.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load, places = [0.0] * ranks, [0] * ranks
    for index in sorted(range(len(turn)), key=lambda index: (-turn[index].fed_tokens, index)):
        length = turn[index].fed_tokens
        roomy = [rank for rank in range(ranks) if not shares[rank] or places[rank] + length <= budget_tokens]
        rank = min(roomy, key=lambda rank: (load[rank], rank))
        shares[rank].append(index)
        load[rank] += cost(length)
        places[rank] += length
    return [sorted(share) for share in shares]


def filler() -> MicroBatch:
    """The least there is to compute, for a rank that has nothing and must take part; its loss is not counted."""
    token = np.zeros(1, np.int32)
    return lay_out([Sequence(token, token)])


def lay_out(sequences: list[Sequence]) -> MicroBatch:
    """One micro-batch of exactly these sequences."""
    fed = [np.concatenate([s.prompt_tokens, s.response_tokens[:-1]]) for s in sequences]
    lengths = np.array([tokens.size for tokens in fed], dtype=np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    responses = np.array([s.response_tokens.size for s in sequences], dtype=np.int64)
    return MicroBatch(
        input_ids=torch.from_numpy(np.concatenate(fed).astype(np.int64)),
        position_ids=torch.from_numpy(np.arange(ends[-1]) - np.repeat(starts, lengths)),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
        rows=torch.from_numpy(
            np.concatenate([np.arange(end - count, end) for end, count in zip(ends, responses, strict=True)])
        ),
        targets=torch.from_numpy(np.concatenate([s.response_tokens for s in sequences]).astype(np.int64)),
        lengths=tuple(lengths.tolist()),
        response_lengths=tuple(responses.tolist()),
    )
