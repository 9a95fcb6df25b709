"""Packs sequences end to end into micro-batches under a token budget, and balances them over the ranks by cost.

A sequence of P prompt and R response tokens feeds T = P + R - 1 tokens: the last one is predicted, never fed.

    prompt   a b c          fed        a b c x y        position   0 1 2 3 4
    response x y z          predicts   . . x y z        rows             2 3 4

Legend of shapes: T tokens fed, N response tokens, S sequences of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

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
        """Tokens that the sequence feeds to the model: all but its last."""
        return int(self.prompt_tokens.size + self.response_tokens.size) - 1


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Sequences end to end, for one forward and backward pass."""

    input_ids: torch.Tensor
    """[T] int64."""
    position_ids: torch.Tensor
    """[T] int64, from 0 in every sequence."""
    cu_seqlens: torch.Tensor
    """[S + 1] int32, the boundaries of the sequences: 0, ..., T."""
    rows: torch.Tensor
    """[N] int64, the fed tokens whose output predicts a response token."""
    targets: torch.Tensor
    """[N] int64, those response tokens."""
    lengths: tuple[int, ...]
    """Fed tokens of each of S sequences; sum T."""
    response_lengths: tuple[int, ...]
    """Response tokens of each of S sequences; sum N."""

    def alone(self) -> list[MicroBatch]:
        """Each of S sequences as a micro-batch of its own."""
        fed, responses = list(self.lengths), list(self.response_lengths)
        parts = zip(
            torch.split(self.input_ids, fed),
            torch.split(self.position_ids, fed),
            torch.split(self.rows, responses),
            torch.split(self.targets, responses),
            self.cu_seqlens.tolist(),
            strict=False,  # of S + 1 boundaries the last starts nothing
        )
        return [
            MicroBatch(
                input_ids=input_ids,
                position_ids=position_ids,
                cu_seqlens=self.cu_seqlens.new_tensor([0, input_ids.numel()]),
                rows=rows - start,
                targets=targets,
                lengths=(input_ids.numel(),),
                response_lengths=(targets.numel(),),
            )
            for input_ids, position_ids, rows, targets, start in parts
        ]

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on `device`."""
        names = ("input_ids", "position_ids", "cu_seqlens", "rows", "targets")
        moved: dict[str, Any] = {name: copy_without_waiting(getattr(self, name), device) for name in names}
        return replace(self, **moved)


def copy_without_waiting(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`; the host goes on, so the next micro-batch arrives while the GPU computes."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class HasLength(Protocol):
    """A sequence, or something that holds one."""

    @property
    def fed_tokens(self) -> int: ...


Item = TypeVar("Item", bound=HasLength)


def global_micro_batches(sequences: Iterable[Item], budget_tokens: int, ranks: int = 1) -> Iterator[list[Item]]:
    """Group the sequences, in their order, into what all ranks train at once: at most `budget_tokens` for each rank.

    Next-fit: the first sequence that does not fit closes a group. So a group does not depend on later sequences, and
    training may start while sequences still arrive. If a sequence of L tokens fits on none of n ranks, the ranks hold
    more than n (budget - L) tokens; up to that sum it fits, however the others were assigned. A sequence longer than
    the budget gets a group of its own.
    """
    group: list[Item] = []
    tokens = longest = 0
    for sequence in sequences:
        longest = max(longest, sequence.fed_tokens)
        tokens += sequence.fed_tokens
        if group and tokens > ranks * budget_tokens - (ranks - 1) * longest:
            yield group
            group, tokens, longest = [], sequence.fed_tokens, sequence.fed_tokens
        group.append(sequence)
    if group:
        yield group


def assign_to_ranks(
    lengths: list[int], budget_tokens: int, ranks: int, cost: Callable[[int], float]
) -> list[list[int]]:
    """Each rank's share of a group with these lengths: positions in it, ascending; the last ranks may get none.

    All ranks wait for the slowest, so the costliest sequence goes first, to the least loaded rank that has room
    (Graham's LPT rule: at most 4/3 of the optimum if there is room). `cost` is that of a sequence of so many tokens.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load, tokens = [0.0] * ranks, [0] * ranks
    for position in sorted(range(len(lengths)), key=lambda position: (-lengths[position], position)):
        length = lengths[position]
        with_room = [rank for rank in range(ranks) if not shares[rank] or tokens[rank] + length <= budget_tokens]
        rank = min(with_room, key=lambda rank: (load[rank], rank))
        shares[rank].append(position)
        load[rank] += cost(length)
        tokens[rank] += length
    return [sorted(share) for share in shares]


def filler_batch() -> MicroBatch:
    """The smallest micro-batch, for a rank without work that must take part in a forward; its loss is not counted."""
    token = np.zeros(1, np.int32)
    return pack_sequences([Sequence(token, token)])


def pack_sequences(sequences: list[Sequence]) -> MicroBatch:
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
