"""From two versions to a delta: finds the changes, groups them by class of the old value, writes the frames."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.errors import WeightError
from services.tensors import Tensors
from services.weights.delta.elements import Bits
from services.weights.delta.sections import (
    CLASS_RECORD,
    HEADER,
    LENGTH,
    MAGIC,
    THREADS,
    WHOLE_INDEX,
    Chunk,
    Section,
    bits_of,
    chunks_of,
    map_ahead,
    members_of,
    sections_of,
)
from services.weights.delta.streams import GAP_PRECISION, FrameWriter, bits_needed

WHOLE_ABOVE = 0.95
"""Share of a tensor's own bytes above which its changes are not worth coding."""


def encode(parent: Tensors, child: Tensors) -> bytes:
    """The exact change from parent to child; WeightError unless both have the same names, dtypes and shapes."""
    _check_alike(parent, child)
    parts = [MAGIC]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="delta") as pool:
        for section in sections_of(parent):
            frame = _SectionEncoder(section, parent, child, pool).encode()
            parts += [LENGTH.pack(len(frame)), frame]
    return b"".join(parts)


def _check_alike(parent: Tensors, child: Tensors) -> None:
    if parent.keys() != child.keys():
        odd = sorted(parent.keys() ^ child.keys())
        raise WeightError(f"{len(odd)} tensors are not in both versions, the first is {odd[0]!r}")
    for name, old in parent.items():
        new = child[name]
        if (old.dtype, old.shape) != (new.dtype, new.shape):
            raise WeightError(
                f"tensor {name!r} changes from {old.dtype} {old.shape} to {new.dtype} {new.shape}",
                hint="a version with other tensors needs a snapshot",
            )


@dataclass(slots=True)
class _ClassChanges:
    """What one class of a section collects, chunk by chunk."""

    number: int
    flags: list[NDArray[np.bool_]] = field(default_factory=list)
    """Per chunk [members]: changed?"""
    distances: list[Bits] = field(default_factory=list)
    """Per chunk [changed members], as `ElementKind.distance` gives them."""


class _SectionEncoder:
    def __init__(self, section: Section, parent: Tensors, child: Tensors, pool: ThreadPoolExecutor) -> None:
        self._section = section
        self._kind = section.kind
        self._old = [bits_of(parent[name]) for name in section.names]
        self._new = [bits_of(child[name]) for name in section.names]
        self._chunks = chunks_of(section, parent)
        self._pool = pool

    def encode(self) -> bytes:
        """The section's frame; empty when nothing changed."""
        changed = list(map_ahead(self._pool, self._find_changes, self._chunks))
        if not any(positions.size for positions in changed):
            return b""
        whole = self._choose_whole(changed)
        kept = [pair for pair in zip(self._chunks, changed, strict=True) if pair[0].index not in whole]
        classes = self._collect(kept)
        return self._write(classes, whole)

    def _bits(self, chunk: Chunk) -> tuple[Bits, Bits]:
        return self._old[chunk.index][chunk.start : chunk.stop], self._new[chunk.index][chunk.start : chunk.stop]

    def _find_changes(self, chunk: Chunk) -> NDArray[np.uint32]:
        old, new = self._bits(chunk)
        return np.flatnonzero(old != new).astype(np.uint32)

    def _choose_whole(self, changed: Sequence[NDArray[np.uint32]]) -> list[int]:
        """Indexes of the tensors whose changes would take more bytes than the tensor itself."""
        needed = np.zeros(len(self._old))
        for chunk, positions in zip(self._chunks, changed, strict=True):
            if 2 * positions.size > chunk.stop - chunk.start:
                old, new = self._bits(chunk)
                distances = self._kind.distance(old[positions], new[positions])
                # one bit for the direction, which is the distance's lowest
                needed[chunk.index] += positions.size + bits_needed(distances >> 1, self._kind.precision)
        limits = [WHOLE_ABOVE * bits.size * self._kind.width for bits in self._old]
        return [index for index, limit in enumerate(limits) if needed[index] > limit]

    def _collect(self, kept: Sequence[tuple[Chunk, NDArray[np.uint32]]]) -> list[_ClassChanges]:
        present = np.zeros(256, bool)
        for chunk, positions in kept:
            present[self._kind.classes(self._bits(chunk)[0][positions])] = True
        numbers = np.flatnonzero(present).astype(np.uint8)
        if not numbers.size:
            return []
        classes = [_ClassChanges(int(number)) for number in numbers]

        def survey(item: tuple[Chunk, NDArray[np.uint32]]) -> list[tuple[NDArray[np.bool_], Bits]]:
            chunk, positions = item
            old, new = self._bits(chunk)
            changed = np.zeros(old.size, bool)
            changed[positions] = True
            members = members_of(self._kind, numbers, old)
            flags = [changed[each] for each in members]
            moved = [each[flag] for each, flag in zip(members, flags, strict=True)]
            joined = np.concatenate(moved)
            distances = self._kind.distance(old[joined], new[joined])
            ends = np.cumsum([each.size for each in moved])
            return list(zip(flags, np.split(distances, ends[:-1]), strict=True))

        for found in map_ahead(self._pool, survey, kept):
            for changes, (flags, distances) in zip(classes, found, strict=True):
                changes.flags.append(flags)
                changes.distances.append(distances)
        return classes

    def _write(self, classes: Sequence[_ClassChanges], whole: Sequence[int]) -> bytes:
        records = np.zeros(len(classes), CLASS_RECORD)
        streams = []
        for record, changes in zip(records, classes, strict=True):
            flags = np.concatenate(changes.flags)
            distances = np.concatenate(changes.distances)
            inverted = 2 * distances.size > flags.size
            gaps = np.diff(np.flatnonzero(flags != inverted), prepend=-1) - 1
            record["number"], record["inverted"] = changes.number, inverted
            record["gaps"], record["changes"] = gaps.size, distances.size
            streams.append((gaps, distances))
        writer = FrameWriter()
        header = HEADER.pack(self._section.elements, len(classes), len(whole))
        writer.write(header + records.tobytes() + np.array(whole, WHOLE_INDEX).tobytes())
        for gaps, distances in streams:
            writer.write_integers(gaps, GAP_PRECISION)
            writer.write_integers(distances >> 1, self._kind.precision, (distances & 1).astype(np.uint8))
        for index in whole:
            writer.write(np.ascontiguousarray(self._new[index]).view(np.uint8).data)
        return writer.finish()
