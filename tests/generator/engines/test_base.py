"""The types of the engine contract."""

from __future__ import annotations

import pytest

from generator.engines.base import version_spans


@pytest.mark.parametrize(
    ("versions", "spans"),
    [
        ([], []),
        ([3], [(3, 0, 1)]),
        ([3, 3, 4], [(3, 0, 2), (4, 2, 3)]),
        ([1, 2, 2, 5], [(1, 0, 1), (2, 1, 3), (5, 3, 4)]),
    ],
)
def test_version_spans_join_equal_neighbours(versions: list[int], spans: list[tuple[int, int, int]]) -> None:
    assert [(span.weight_version, span.start, span.end) for span in version_spans(versions)] == spans
