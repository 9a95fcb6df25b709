"""A line of a log is taken apart, whatever wrote it."""

from __future__ import annotations

from datetime import datetime

import pytest

from services.dashboard.log_lines import parse_lines

NEW_YEAR_S = datetime(2026, 1, 1).astimezone().timestamp()


def local_s(text: str) -> float:
    return datetime.fromisoformat(text).astimezone().timestamp()


@pytest.mark.parametrize(
    ("line", "time_s", "level", "text"),
    [
        ("2026-01-02T03:04:05.5Z [warning  ] lease_lost    part=g id=r1", 1767323045.5, "warning", "lease_lost id=r1"),
        (
            '{"part": "g", "event": "cut", "level": "error", "timestamp": "2026-01-02T03:04:05Z", "at": 1}',
            1767323045.0,
            "error",
            "cut at=1",
        ),
        ('{"time": 1767323045.5, "event": "part_died", "part": "l"}', 1767323045.5, "warning", "part_died part=l"),
        (
            "2026-01-02 03:04:05,500 ERROR asyncio Task was destroyed",
            local_s("2026-01-02T03:04:05.5"),
            "error",
            "asyncio Task was destroyed",
        ),
        (
            "(EngineCore pid=9) WARNING 01-02 03:04:05 [vllm.py:7] slow",
            local_s("2026-01-02T03:04:05"),
            "info",
            "WARNING [vllm.py:7] slow",
        ),
        (
            "INFO 12-31 23:59:59 [vllm.py:7] eager",
            local_s("2025-12-31T23:59:59"),
            "info",
            "INFO [vllm.py:7] eager",
        ),
        ("12:M 02 Jan 2026 03:04:05.678 # Ready", local_s("2026-01-02T03:04:05.678"), "info", "Ready"),
    ],
)
def test_whoever_wrote_a_line_its_time_is_found(line: str, time_s: float, level: str, text: str) -> None:
    # vLLM writes no year: the one closest to the line before counts
    before = f'{{"time": {NEW_YEAR_S - 86400 * 30}, "event": "before"}}'
    _, parsed = parse_lines("g", [before, line])
    assert (parsed.part, parsed.time_s, parsed.level, parsed.text) == ("g", time_s, level, text)


@pytest.mark.parametrize("line", ["", "{broken", "[1]", "loading ... 100%", "2026-13-02T03:04:05Z [info ] x"])
def test_a_line_without_a_time_has_that_of_the_line_before(line: str) -> None:
    first, second = parse_lines("g", [line, line], before_s=7.0)
    assert first.time_s == second.time_s == 7.0
    assert next(parse_lines("g", [line])).time_s is None


def test_times_do_not_fall_when_a_clock_is_set_back() -> None:
    lines = [f'{{"time": {time_s}, "event": "e"}}' for time_s in (5.0, 3.0, 6.0)]
    assert [line.time_s for line in parse_lines("g", lines)] == [5.0, 5.0, 6.0]


def test_the_29th_of_february_is_a_day_of_vllm_too() -> None:
    line = "INFO 02-29 12:00:00 [a.py:1] leap"
    (parsed,) = parse_lines("g", [line], before_s=local_s("2028-02-29T11:00:00"))
    assert parsed.time_s == local_s("2028-02-29T12:00:00")
