"""Decodes a delta to patches of its parent; trusts no byte of the delta.

For any bytes the outcome is patches inside the parent's tensors or a WeightError, and memory stays within a
small multiple of one section of the parent.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
from services.weights.delta.streams import GAP_PRECISION, FrameReader


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """New values of one tensor's changed elements."""

    name: str
    indices: NDArray[np.int64]
    """[N] flat element positions, ascending."""
    values: Bits
    """[N] the new bits, in the unsigned type of the element's size."""


def apply(patch: Patch, target: NDArray[np.uint8]) -> None:
    """Overwrites the patch's elements in a tensor's raw bytes, in place; WeightError when one lies outside."""
    elements = target.view(patch.values.dtype)
    if patch.indices.size and not 0 <= patch.indices[0] <= patch.indices[-1] < elements.size:
        raise WeightError(f"the patch of {patch.name!r} does not fit a tensor of {elements.size} elements")
    elements[patch.indices] = patch.values


def decode(parent: Tensors, delta: bytes) -> Iterator[Patch]:
    """One patch per changed tensor; WeightError when the bytes are not a delta of a parent like this.

    The values are right only for the very parent that was encoded: compare digests before and after.
    """
    view = memoryview(delta)
    if view[: len(MAGIC)] != MAGIC:
        raise WeightError("these bytes are not a weight delta", hint="was it written by another release?")
    at = len(MAGIC)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="delta") as pool:
        for section in sections_of(parent):
            if len(view) - at < LENGTH.size:
                raise WeightError(f"the weight delta ends at byte {len(view)}, before its last section")
            (size,) = LENGTH.unpack_from(view, at)
            at += LENGTH.size
            if size > len(view) - at:
                raise WeightError(f"a section of {size} bytes exceeds the {len(view) - at} left in the weight delta")
            if size:
                yield from _SectionDecoder(section, parent, FrameReader(view[at : at + size]), pool).patches()
            at += size
    if at != len(view):
        raise WeightError(f"the weight delta has {len(view) - at} bytes too many")


class _ClassChanges:
    """One class's changes, handed out as its members are met in the parent."""

    def __init__(self, *, inverted: bool, places: NDArray[np.int64], distances: Bits) -> None:
        self._inverted = inverted
        self._places = places
        """[gaps] ascending counts, through the class's members, of the changed (inverted: unchanged) ones."""
        self._distances = distances
        self._seen = self._placed = self._moved = 0

    def take(self, members: NDArray[np.int64]) -> tuple[NDArray[np.int64], Bits]:
        """(the changed ones of the class's next members, their distances)."""
        reached = self._seen + members.size
        end = int(np.searchsorted(self._places, reached))
        picked = self._places[self._placed : end] - self._seen
        self._seen, self._placed = reached, end
        changed = np.delete(members, picked) if self._inverted else members[picked]
        distances = self._distances[self._moved : self._moved + changed.size]
        self._moved += changed.size
        if distances.size != changed.size:
            raise WeightError("the weight delta holds fewer values than changes")
        return changed, distances

    def check_finished(self) -> None:
        if self._placed != self._places.size or self._moved != self._distances.size:
            raise WeightError("the weight delta holds changes for elements that the parent does not have")


class _SectionDecoder:
    def __init__(self, section: Section, parent: Tensors, reader: FrameReader, pool: ThreadPoolExecutor) -> None:
        self._section = section
        self._kind = section.kind
        self._parent = parent
        self._reader = reader
        self._pool = pool

    def patches(self) -> Iterator[Patch]:
        elements, class_count, whole_count = HEADER.unpack(self._reader.read(HEADER.size))
        if elements != self._section.elements or class_count > 256 or whole_count > len(self._section.names):
            raise WeightError(
                f"the weight delta is for a section of {elements} elements, the parent's has {self._section.elements}",
                hint="it belongs to another model or version",
            )
        records = np.frombuffer(self._reader.read(class_count * CLASS_RECORD.itemsize), CLASS_RECORD)
        whole = np.frombuffer(self._reader.read(whole_count * WHOLE_INDEX.itemsize), WHOLE_INDEX)
        if not _ascending(records["number"]) or not _ascending(whole):
            raise WeightError("the weight delta lists a class or tensor twice")
        if whole_count and whole[-1] >= len(self._section.names):
            raise WeightError(f"the weight delta replaces tensor {whole[-1]} of {len(self._section.names)}")
        self._check_sizes(records)
        classes = [self._read_class(record) for record in records]
        yield from self._sparse(records["number"], classes, set(whole.tolist()))
        for index in whole.tolist():
            yield self._replaced(self._section.names[index])

    def _check_sizes(self, records: NDArray[np.void]) -> None:
        """More gaps or changes than elements are refused before anything is allocated for them."""
        for what in ("gaps", "changes"):
            total = sum(int(count) for count in records[what])
            if total > self._section.elements:
                raise WeightError(f"the weight delta holds {total} {what} for {self._section.elements} elements")

    def _read_class(self, record: np.void) -> _ClassChanges:
        gaps, _ = self._reader.read_integers(int(record["gaps"]), GAP_PRECISION)
        # summed as floats first: integers could wrap around, and a wrapped sum would pass for a small one
        if gaps.sum(dtype=np.float64) > self._section.elements:
            raise WeightError("the weight delta points outside its section")
        places = np.cumsum(gaps.astype(np.int64) + 1) - 1
        halves, backward = self._reader.read_integers(int(record["changes"]), self._kind.precision, flagged=True)
        distances = (halves.astype(self._kind.dtype) << 1) | backward
        return _ClassChanges(inverted=bool(record["inverted"]), places=places, distances=distances)

    def _sparse(self, numbers: NDArray[np.uint8], classes: list[_ClassChanges], whole: set[int]) -> Iterator[Patch]:
        chunks = chunks_of(self._section, self._parent, without=whole)

        def survey(chunk: Chunk) -> list[NDArray[np.int64]]:
            return members_of(self._kind, numbers, self._bits(chunk))

        found: list[tuple[NDArray[np.int64], Bits]] = []
        for chunk, members in zip(chunks, map_ahead(self._pool, survey, chunks), strict=True):
            found.append(self._change(chunk, [each.take(held) for each, held in zip(classes, members, strict=True)]))
            name = self._section.names[chunk.index]
            if chunk.stop == bits_of(self._parent[name]).size:
                indices, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
                if indices.size:
                    yield Patch(name, indices, values)
                found = []
        for each in classes:
            each.check_finished()

    def _bits(self, chunk: Chunk) -> Bits:
        return bits_of(self._parent[self._section.names[chunk.index]])[chunk.start : chunk.stop]

    def _change(self, chunk: Chunk, taken: list[tuple[NDArray[np.int64], Bits]]) -> tuple[NDArray[np.int64], Bits]:
        """(ascending positions in the tensor, new bits) of one chunk's changes."""
        if not taken:
            return np.zeros(0, np.int64), np.zeros(0, self._kind.dtype)
        positions = np.concatenate([changed for changed, _ in taken])
        distances = np.concatenate([moves for _, moves in taken])
        order = np.argsort(positions)
        positions, distances = positions[order], distances[order]
        return positions + chunk.start, self._kind.move(self._bits(chunk)[positions], distances)

    def _replaced(self, name: str) -> Patch:
        old = bits_of(self._parent[name])
        new = np.frombuffer(self._reader.read(old.nbytes), self._kind.dtype)
        indices = np.flatnonzero(old != new)
        return Patch(name, indices, new[indices])


def _ascending(numbers: NDArray[np.integer]) -> bool:
    return bool((numbers[1:] > numbers[:-1]).all())
