"""Lengths of time as people read them."""

from __future__ import annotations

import pytest

from deploy.operate.durations import in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (8, "8 s"),
        (59.6, "1 min"),
        (100, "1 min 40 s"),
        (3600, "1 h"),
        (4000, "1 h 6 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_two_units_are_enough(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
