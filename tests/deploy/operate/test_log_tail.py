"""The last lines of every part, then each new one exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.operate.log_tail import LogTail
from services.errors import ConfigError
from services.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.logs.mkdir()
    write(run, "learner", "one\ntwo\nthree\n")
    write(run, "services", "up\n")
    return run


def write(folder: RunFolder, part: str, text: str) -> None:
    with (folder.log_of(part)).open("a") as log:
        log.write(text)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [(0, []), (1, ["three"]), (2, ["two", "three"]), (3, ["one", "two", "three"]), (9, ["one", "two", "three"])],
)
def test_the_last_lines_come_first(folder: RunFolder, lines: int, expected: list[str]) -> None:
    tail = LogTail(folder, ["learner"], lines=lines)
    assert list(tail.new_lines()) == [("learner", line) for line in expected]
    assert not list(tail.new_lines())


def test_every_part_is_read_unless_some_are_named(folder: RunFolder) -> None:
    assert [part for part, _ in LogTail(folder, lines=1).new_lines()] == ["learner", "services"]


def test_a_part_without_a_log_is_refused_with_those_that_have_one(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match="no log of lerner") as refused:
        LogTail(folder, ["lerner"], lines=1)
    assert "learner, services" in refused.value.hint


def test_a_line_is_given_out_when_it_is_whole(folder: RunFolder) -> None:
    tail = LogTail(folder, ["learner"], lines=0)
    write(folder, "learner", "fo")
    assert not list(tail.new_lines())
    write(folder, "learner", "ur\nfi")
    assert list(tail.new_lines()) == [("learner", "four")]


def test_parts_that_start_later_are_followed_until_the_run_ends(folder: RunFolder) -> None:
    """What is written between the last look and the end still comes."""

    def going() -> Iterator[bool]:
        write(folder, "generator-0", "hello\n")
        yield True
        write(folder, "learner", "finished\n")
        yield False

    states = going()
    tail = LogTail(folder, lines=0)
    assert list(tail.follow(lambda: next(states))) == [("generator-0", "hello"), ("learner", "finished")]


def test_only_the_end_of_a_long_log_is_read(folder: RunFolder) -> None:
    write(folder, "redis", "x" * 3_000_000 + "\nlast\n")
    assert [line for _, line in LogTail(folder, ["redis"], lines=1).new_lines()] == ["last"]
