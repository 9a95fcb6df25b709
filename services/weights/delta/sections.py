"""What encoder and decoder share: order of tensors, sections, chunks, records of the frame.

Both sides derive it from the parent alone, so none of it is sent.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from services.tensors import RawTensor, Tensors
from services.weights.delta.elements import KINDS, Bits, ElementKind

MAGIC = b"SEPTDLT1"
SECTION_ELEMENTS = 1 << 28
"""Bounds the memory of both sides; long enough that one more set of code tables costs nothing."""
CHUNK_ELEMENTS = 1 << 20
"""Worked on at once by one thread: its arrays stay in the cache."""
NARROW_EVERY = 4
THREADS = min(8, len(os.sched_getaffinity(0)))

LENGTH = struct.Struct("<Q")
HEADER = struct.Struct("<QHI")
"""Elements of the section, class records, tensors sent whole."""
CLASS_RECORD = np.dtype([("number", "u1"), ("inverted", "u1"), ("gaps", "<u8"), ("changes", "<u8")])
WHOLE_INDEX = np.dtype("<u4")

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Section:
    """Tensors of one element type that share their statistics."""

    kind: ElementKind
    names: tuple[str, ...]
    elements: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Elements [start, stop) of the tensor `section.names[index]`."""

    index: int
    start: int
    stop: int


def bits_of(tensor: RawTensor) -> Bits:
    """[N] flat view of the tensor's elements as unsigned integers."""
    return tensor.data.view(KINDS[tensor.dtype].dtype)


def sections_of(parent: Tensors, limit: int = SECTION_ELEMENTS) -> list[Section]:
    """The parent's tensors by (dtype, name), cut where the dtype changes or a section is long enough."""
    sections = []
    by_dtype = sorted(parent, key=lambda name: (parent[name].dtype, name))
    for dtype, names in itertools.groupby(by_dtype, key=lambda name: parent[name].dtype):
        run: list[str] = []
        elements = 0
        for name in names:
            run.append(name)
            elements += bits_of(parent[name]).size
            if elements >= limit:
                sections.append(Section(KINDS[dtype], tuple(run), elements))
                run, elements = [], 0
        if run:
            sections.append(Section(KINDS[dtype], tuple(run), elements))
    return sections


def chunks_of(section: Section, parent: Tensors, without: Collection[int] = ()) -> list[Chunk]:
    """All elements of the section in order, except those of the tensors at the indexes `without`."""
    return [
        Chunk(index, start, min(start + CHUNK_ELEMENTS, size))
        for index, name in enumerate(section.names)
        if index not in without
        for size in [bits_of(parent[name]).size]
        for start in range(0, size, CHUNK_ELEMENTS)
    ]


def members_of(kind: ElementKind, numbers: NDArray[np.uint8], bits: Bits) -> list[NDArray[np.int64]]:
    """Per class number (ascending), the ascending positions of its elements.

    Every lower exponent has about half as many elements, so after every few classes the search narrows to what is left:
    thirty classes cost about as much as the first few.
    """
    classes = kind.classes(bits)
    left = None
    members = []
    for searched, number in enumerate(numbers[::-1]):
        if searched % NARROW_EVERY == 0:
            below = np.flatnonzero(classes <= number)
            if 2 * below.size < classes.size:
                classes = classes[below]
                left = below if left is None else left[below]
        found = np.flatnonzero(classes == number)
        members.append(found if left is None else left[found])
    return members[::-1]


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Argument], Result], items: Iterable[Argument]
) -> Iterator[Result]:
    """`map` in order on the pool's threads, only a few items ahead of the consumer so that memory stays bounded."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > 2 * THREADS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
