"""Of a warning that repeats there is one line a second."""

from __future__ import annotations

import logging

import pytest
import structlog

from services.logs import MAX_KINDS, OncePerSecond, configure_logs


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_line_after_a_second_counts_those_that_were_dropped() -> None:
    clock = Clock()
    rate = OncePerSecond(clock)
    assert [rate.suppressed("a") for _ in range(4)] == [0, None, None, None]
    assert rate.suppressed("b") == 0
    clock.now += 1.0
    assert [rate.suppressed("a"), rate.suppressed("a")] == [3, None]


def test_kinds_that_are_made_up_take_no_memory() -> None:
    rate = OncePerSecond(Clock())
    for number in range(10 * MAX_KINDS):
        rate.suppressed(str(number))
    assert len(rate._kinds) <= MAX_KINDS


def test_warnings_are_counted_and_what_a_part_reports_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    configure_logs("services")
    log = structlog.get_logger()
    for number in range(50):
        log.warning("redis_failed", number=number)
        log.info("progress", number=number)
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    lines = capsys.readouterr().err.splitlines()
    assert sum("redis_failed" in line for line in lines) == 1
    assert sum("progress" in line for line in lines) == 50
    assert sum("Invalid HTTP request" in line for line in lines) == 1
