"""The logs of all parts as one stream: its end, then each new line exactly once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from deploy.operate import log_tail
from deploy.operate.log_tail import LogTail
from services.dashboard.log_lines import LogLine
from services.errors import ConfigError
from services.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.logs.mkdir()
    write(run, "learner", at(1, "one"), "a library says\n", at(4, "two"), at(6, "three"))
    write(run, "services", at(2, "up"), at(5, "asked"))
    return run


def at(time_s: float, event: str) -> str:
    return json.dumps({"time": time_s, "event": event}) + "\n"


def write(folder: RunFolder, part: str, *texts: str) -> None:
    with (folder.log_of(part)).open("a") as log:
        log.write("".join(texts))


def texts(lines: Iterable[LogLine]) -> list[str]:
    return [line.text for line in lines]


def test_all_parts_are_one_stream_in_the_order_of_time(folder: RunFolder) -> None:
    """A line without a time stays behind the one that its part wrote before it."""
    lines = list(LogTail(folder).last())
    assert texts(lines) == ["one", "a library says", "up", "two", "asked", "three"]
    assert [line.part for line in lines][:3] == ["learner", "learner", "services"]


def test_what_a_part_writes_before_its_first_time_comes_with_it(folder: RunFolder) -> None:
    write(folder, "generator-0", "loading 10 %\rloading 100 %\n", at(3, "started"))
    assert texts(LogTail(folder).last())[2:6] == ["up", "loading 100 %", "started", "two"]


@pytest.mark.parametrize(
    ("lines", "expected"), [(0, []), (1, ["three"]), (2, ["asked", "three"]), (9, ["one", "a library says", "up"])]
)
def test_the_last_lines_are_those_of_all_parts_together(folder: RunFolder, lines: int, expected: list[str]) -> None:
    tail = LogTail(folder)
    assert texts(tail.last(lines=lines))[:3] == expected
    assert not list(tail.new_lines())


def test_lines_since_a_point_in_time(folder: RunFolder) -> None:
    assert texts(LogTail(folder).last(since_s=4)) == ["two", "asked", "three"]
    assert texts(LogTail(folder).last(since_s=4, lines=1)) == ["three"]
    assert texts(LogTail(folder).last(since_s=7)) == []


def test_some_parts_can_be_named(folder: RunFolder) -> None:
    assert texts(LogTail(folder, ["services"]).last()) == ["up", "asked"]


def test_a_part_without_a_log_is_refused_with_those_that_have_one(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match="no log of lerner") as refused:
        LogTail(folder, ["lerner"])
    assert "learner, services" in refused.value.hint


def test_a_line_is_given_out_when_it_is_whole(folder: RunFolder) -> None:
    tail = LogTail(folder, ["learner"])
    assert texts(tail.last(lines=0)) == []
    write(folder, "learner", "fo")
    assert not list(tail.new_lines())
    write(folder, "learner", "ur\nfi")
    assert [(line.time_s, line.text) for line in tail.new_lines()] == [(6, "four")]


def test_parts_that_start_later_are_followed_until_the_run_ends(folder: RunFolder) -> None:
    """What is written between the last look and the end still comes."""

    def going() -> Iterator[bool]:
        write(folder, "generator-0", at(7, "hello"))
        yield True
        write(folder, "learner", at(9, "finished"))
        write(folder, "generator-0", at(8, "draining"))
        yield False

    states = going()
    tail = LogTail(folder)
    assert texts(tail.last(lines=0)) == []
    assert texts(tail.follow(lambda: next(states))) == ["hello", "draining", "finished"]


@pytest.mark.parametrize(
    ("lines", "since_s", "expected"), [(1, None, 1), (60, None, 60), (None, 40, 60), (None, None, 100), (1, 0, 1)]
)
def test_no_more_of_a_long_log_is_read_than_is_wanted(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, lines: int | None, since_s: float | None, expected: int
) -> None:
    monkeypatch.setattr(log_tail, "SEARCHED_BYTES", 100)
    write(folder, "redis", *(at(time_s, f"event {time_s}") for time_s in range(100)))
    found = texts(LogTail(folder, ["redis"]).last(lines=lines, since_s=since_s))
    assert found == [f"event {time_s}" for time_s in range(100 - expected, 100)]


def test_a_huge_line_does_not_hide_the_last_one(folder: RunFolder) -> None:
    write(folder, "redis", "x" * 3_000_000 + "\nlast\n")
    assert texts(LogTail(folder, ["redis"]).last(lines=1)) == ["last"]
