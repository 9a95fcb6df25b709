"""Both sides cut the same sections from the same parent, and find every class's elements."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.weights.delta.elements import KINDS
from services.weights.delta.sections import CHUNK_ELEMENTS, THREADS, chunks_of, map_ahead, members_of, sections_of
from tests.support import weight_samples


def test_sections_are_cut_by_type_and_length() -> None:
    parent = {
        name: weight_samples.tensor(dtype, (4,))
        for name, dtype in [("b", "F32"), ("c", "F32"), ("a", "F32"), ("d", "I8")]
    }
    assert [section.names for section in sections_of(parent, limit=8)] == [("a", "b"), ("c",), ("d",)]
    assert [section.elements for section in sections_of(parent, limit=8)] == [8, 4, 4]


def test_chunks_cover_every_element_once_but_those_of_tensors_sent_whole() -> None:
    sizes = {"a": CHUNK_ELEMENTS + 1, "b": 0, "c": 5, "d": CHUNK_ELEMENTS}
    parent = {name: weight_samples.tensor("I8", (size,)) for name, size in sizes.items()}
    (section,) = sections_of(parent)
    chunks = chunks_of(section, parent, without={2})
    assert [(section.names[chunk.index], chunk.start, chunk.stop) for chunk in chunks] == [
        ("a", 0, CHUNK_ELEMENTS),
        ("a", CHUNK_ELEMENTS, CHUNK_ELEMENTS + 1),
        ("d", 0, CHUNK_ELEMENTS),
    ]


@given(st.integers(0, 2**32), st.integers(0, 300), st.sampled_from(["BF16", "F16", "F8_E4M3", "I16"]))
def test_every_element_is_a_member_of_its_class_alone(seed: int, size: int, dtype: str) -> None:
    kind = KINDS[dtype]
    # small numbers lie in many classes, each with about half as many elements as the one above
    bits = np.random.default_rng(seed).geometric(0.01, size).astype(kind.dtype)
    classes = kind.classes(bits)
    numbers = np.unique(classes)
    members = members_of(kind, numbers, bits)
    for number, found in zip(numbers, members, strict=True):
        np.testing.assert_array_equal(found, np.flatnonzero(classes == number))


def test_results_come_in_order_and_the_items_are_taken_only_a_little_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(50 * THREADS):
            taken.append(item)
            yield item

    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, lambda item: -item, items())
        assert next(results) == 0
        assert len(taken) == 2 * THREADS + 1
        assert list(results) == [-item for item in range(1, 50 * THREADS)]


def test_an_error_in_a_worker_reaches_the_consumer() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        list(map_ahead(pool, lambda item: 1 // item, [1, 0]))
