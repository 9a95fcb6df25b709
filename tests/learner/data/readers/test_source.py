"""Data sets as settings name them: paths, globs, ids, and options after a question mark."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.data.readers.source import Source, absolute_source, is_glob, parse_source, split_sources
from services.errors import DataError


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("train.jsonl", Source("train.jsonl")),
        ("openai/gsm8k:main", Source("openai/gsm8k:main")),
        ("a.csv?question=Frage&answer=Antwort", Source("a.csv", "Frage", "Antwort")),
        ("org/set?answer=final%20answer", Source("org/set", None, "final answer")),
        ("part-?.jsonl?bad_rows=leave_out", Source("part-?.jsonl", bad_rows="leave_out")),
        ("part-?.jsonl", Source("part-?.jsonl")),
        ("a.jsonl?weight=0.5&answer=x", Source("a.jsonl", answer="x", weight=0.5)),
        ("what?.jsonl", Source("what?.jsonl")),
    ],
)
def test_options_stand_after_the_last_question_mark(text: str, source: Source) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "a.csv?frage=x",
        "a.csv?question=",
        "a.csv?answer=a&answer=b",
        "a?bad_rows=drop",
        "a?weight=0",
        "a?weight=x",
        "a?weight=nan",
        "a?weight=1e9",
    ],
)
def test_unknown_empty_and_repeated_options_are_refused(text: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_source(text)
    assert caught.value.hint


def test_a_file_whose_name_looks_like_an_option_is_that_file(tmp_path: Path) -> None:
    file = tmp_path / "a?question=b"
    file.write_text("")
    assert parse_source(str(file)) == Source(str(file))
    assert not is_glob(str(file))


def test_local_paths_and_globs_become_absolute_with_their_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("")
    assert absolute_source("a.csv?question=Frage") == f"{tmp_path}/a.csv?question=Frage"
    assert absolute_source("*.csv") == f"{tmp_path}/*.csv"
    assert absolute_source("openai/gsm8k:main") == "openai/gsm8k:main"
    assert absolute_source("none.csv") == "none.csv"
    assert absolute_source("") == ""


def test_several_data_sets_are_joined_and_a_file_of_that_name_is_one(tmp_path: Path) -> None:
    assert split_sources("a.jsonl?weight=2 + org/b:main") == ["a.jsonl?weight=2", "org/b:main"]
    file = tmp_path / "a + b.jsonl"
    file.write_text("")
    assert split_sources(str(file)) == [str(file)]


def test_each_of_several_data_sets_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("")
    assert absolute_source("a.jsonl?weight=2 + org/b") == f"{tmp_path}/a.jsonl?weight=2 + org/b"
