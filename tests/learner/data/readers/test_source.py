"""Data sets as settings name them: paths, globs, ids, and options after a question mark."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.data.readers.source import Source, absolute_source, is_glob, parse_source
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
        ("what?.jsonl", Source("what?.jsonl")),
    ],
)
def test_options_stand_after_the_last_question_mark(text: str, source: Source) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize("text", ["a.csv?frage=x", "a.csv?question=", "a.csv?answer=a&answer=b", "a?bad_rows=drop"])
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
