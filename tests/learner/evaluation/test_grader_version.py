"""Grades are counted together only where the same grader gave them."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

import learner.grading
from learner.evaluation.grader_version import LIBRARIES, grader_version

own_version = grader_version.__wrapped__
"""Without what it remembers."""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the grader that may be changed."""
    copy = tmp_path / "grading"
    shutil.copytree(learner.grading.__path__[0], copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(learner.grading, "__path__", [str(copy)])
    return copy


def test_the_same_sources_are_the_same_grader_wherever_they_are(sources: Path) -> None:
    before = own_version()
    assert before == grader_version()
    assert len(before) == 12
    assert int(before, 16) >= 0
    (sources / "notes.txt").write_text("no source")
    assert own_version() == before


@pytest.mark.parametrize("name", ["units.py", "words/unit_table.py"])
def test_another_source_is_another_grader(name: str, sources: Path) -> None:
    before = own_version()
    with (sources / name).open("a") as file:
        file.write("\n# changed\n")
    assert own_version() != before


@pytest.mark.parametrize("library", LIBRARIES)
def test_another_release_of_a_library_is_another_grader(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = own_version()
    monkeypatch.setattr(
        "learner.evaluation.grader_version.version", lambda name: "9.9.9" if name == library else version(name)
    )
    assert own_version() != before
