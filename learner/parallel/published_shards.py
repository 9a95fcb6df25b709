"""What this rank published last, kept on its device, and what has changed since: found before anything is gathered.

Only positions and flipped bits of changed elements travel: to the host through pinned memory, then to rank 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.weights.delta.elements import Bits

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""torch's integers by bytes: a tensor of their type shows the bits of an element."""

CACHED_ELEMENTS = 1 << 18
"""Compared at a time in host memory: the copies of so many stay in a processor's cache."""
DEVICE_ELEMENTS = 1 << 24
"""Compared at a time on a device: its extra memory is about 16 bytes for each."""
WORD_BYTES = 8


@dataclass(frozen=True, slots=True, eq=False)
class ShardFlips:
    """What changed in this rank's elements of one tensor."""

    positions: NDArray[np.int64]
    """[N] flat positions in the shard, ascending."""
    bits: Bits
    """[N] old XOR new."""


@dataclass(slots=True, eq=False)
class PublishedShards:
    """Shards of the newest published version by checkpoint name, in the types of the wire: 2 bytes a bf16 weight."""

    version: int | None = None
    """None: nothing is kept, or nobody knows for which version; the next one is published whole."""
    _shards: dict[str, torch.Tensor] = field(default_factory=dict)
    _pinned: torch.Tensor | None = None

    def keep(self, name: str, shard: torch.Tensor) -> None:
        """Keep this rank's part of a tensor, already in its wire type; the caller changes it no more."""
        self._shards[name] = shard.reshape(-1)

    def shards(self) -> list[torch.Tensor]:
        """All that is kept, flat."""
        return list(self._shards.values())

    def forget(self) -> None:
        """Free the memory."""
        self.version = None
        self._shards.clear()

    def advance(self, name: str, shard: torch.Tensor) -> ShardFlips:
        """Take this rank's part of a tensor, in the type it is trained in, as published; return what that changes."""
        kept, fresh = self._shards[name], shard.reshape(-1)
        block = CACHED_ELEMENTS if kept.device.type == "cpu" else DEVICE_ELEMENTS
        found = [
            (start, *self._changes(kept[start : start + block], fresh[start : start + block]))
            for start in range(0, kept.numel(), block)
        ]
        bits = [part for _, _, part in found if part.size]
        positions = [place.astype(np.int64) + start for start, place, _ in found if place.size]
        if not bits:
            return ShardFlips(np.zeros(0, np.int64), np.zeros(0, unsigned_type(kept.element_size())))
        return ShardFlips(np.concatenate(positions), np.concatenate(bits))

    def _changes(self, kept: torch.Tensor, fresh: torch.Tensor) -> tuple[NDArray[np.int32], Bits]:
        """([N] positions, [N] flipped bits) of one block, which `kept` takes over."""
        integers = INTEGERS[kept.element_size()]
        old, new = kept.view(integers), fresh.to(kept.dtype).view(integers)
        flipped = old ^ new
        unsigned = unsigned_type(kept.element_size())
        if kept.device.type == "cpu":
            host = flipped.numpy().view(unsigned)
            positions = changed_positions(host)
            if positions.size:
                old.copy_(new)
            return positions.astype(np.int32), host[positions]
        places = nonzero(flipped)
        old.copy_(new)
        return self._to_host(places.to(torch.int32)), self._to_host(flipped[places]).view(unsigned)

    def _to_host(self, values: torch.Tensor) -> NDArray[Any]:
        """A copy in host memory, through pinned memory that is kept."""
        size = values.numel() * values.element_size()
        if self._pinned is None or self._pinned.numel() < size:
            self._pinned = torch.empty(max(size, 1 << 20), dtype=torch.uint8, pin_memory=True)
        staged = self._pinned[:size].view(values.dtype)
        staged.copy_(values)
        copy: NDArray[Any] = as_array(staged).copy()
        return copy


def unsigned_type(item_bytes: int) -> np.dtype[np.unsignedinteger[Any]]:
    """numpy's type for the bits of elements of that size."""
    return np.dtype(f"<u{item_bytes}")


def as_array(values: torch.Tensor) -> NDArray[Any]:
    """The values of a tensor in host memory, sharing its memory."""
    array: NDArray[Any] = values.numpy()
    return array


def nonzero(values: torch.Tensor) -> torch.Tensor:
    """[N] int64 positions of the values that are not 0, ascending."""
    return values.nonzero().reshape(-1)


def changed_positions(bits: Bits) -> NDArray[np.int64]:
    """[N] positions of the elements that are not 0, ascending: eight bytes at a time, as nearly all are 0."""
    per_word = WORD_BYTES // bits.itemsize
    whole = bits.size // per_word * per_word
    words = np.flatnonzero(bits[:whole].view(np.uint64) != 0)
    candidates = (words[:, None] * per_word + np.arange(per_word)).reshape(-1)
    tail = np.arange(whole, bits.size)
    candidates = np.concatenate([candidates, tail])
    changed: NDArray[np.int64] = candidates[bits[candidates] != 0]
    return changed
