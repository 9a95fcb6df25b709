"""What a new algorithm touches: its file, its test, its line in the list, and the documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from learner.algorithm_list import ALGORITHMS

ROOT = Path(__file__).parents[2]
CONTROLS = {"format_reward", "random_reward", "wrong_reward"}
"""They share a file: each is a few lines, and none is a method of its own."""
WORDS = {"nll", "entropy", "power", "ssd"}
"""Names that also name a field, a unit or a recipe."""
FOLDERS = ("learner", "deploy", "services", "generator", "sept")


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_algorithm_has_a_file_a_test_and_a_row_in_the_documents(name: str) -> None:
    file = "controls" if name in CONTROLS else name
    assert (ROOT / "learner" / "algorithms" / f"{file}.py").is_file()
    assert (ROOT / "tests" / "learner" / "algorithms" / f"test_{file}.py").is_file()
    rows = re.findall(r"^\| .*\|$", (ROOT / "docs" / "algorithms.md").read_text(), re.MULTILINE)
    assert any(f"`{name}`" in row.split("|")[1] for row in rows)


def test_nothing_else_knows_an_algorithm_by_its_name() -> None:
    """Trainer, batching, settings and loop ask the object: a name in quotes elsewhere is a second place to change."""
    quoted = re.compile("|".join(f'"{name}"' for name in ALGORITHMS if name not in WORDS))
    found = {
        path.relative_to(ROOT).as_posix(): sorted(set(quoted.findall(path.read_text())))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if "algorithms" not in path.parts and quoted.search(path.read_text())
    }
    assert found == {}
