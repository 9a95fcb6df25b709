"""Lengths of time as people read them."""

from __future__ import annotations

from datetime import datetime

import pytest

from deploy.operate.durations import in_words, point_in_time
from services.errors import ConfigError


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


@pytest.mark.parametrize(("text", "ago_s"), [("0s", 0), ("30s", 30), ("10m", 600), ("2 h", 7200), ("3d", 259_200)])
def test_so_long_ago(text: str, ago_s: float) -> None:
    assert point_in_time(text, 1e9) == 1e9 - ago_s


def test_a_date_and_time() -> None:
    assert point_in_time("2026-01-31T08:00Z", 0.0) == 1769846400.0
    assert point_in_time("2026-01-31T08:00", 0.0) == datetime(2026, 1, 31, 8).astimezone().timestamp()


@pytest.mark.parametrize("text", ["", "yesterday", "10", "-5m"])
def test_what_is_no_point_in_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match="is no point in time") as refused:
        point_in_time(text, 0.0)
    assert "10m" in refused.value.hint
