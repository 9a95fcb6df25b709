"""Short word problems: which are chosen, and that none is on both sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.errors import DataError
from studies.word_problems import HELD_OUT, MOST_CHARACTERS, short_problems, write


def row(number: int, solution: str = "1+1=<<1+1=2>>2\n#### 2") -> dict[str, str]:
    return {"question": f"What is {number}?", "answer": solution}


def test_short_problems_have_few_calculations_and_a_final_answer() -> None:
    long = {"question": "x" * (MOST_CHARACTERS + 1), "answer": "<<1=1>> #### 1"}
    three = row(3, "<<1>> <<2>> <<3>> #### 6")
    none = row(4, "It is clear. #### 7")
    assert short_problems([row(1), row(1), long, three, none]) == [{"question": "What is 1?", "answer": "2"}]


def test_a_problem_is_held_out_or_trained_on_whatever_else_the_file_has(tmp_path: Path) -> None:
    rows = [row(number) for number in range(3 * HELD_OUT)]
    source = tmp_path / "train.jsonl"
    found = []
    for order in (rows, rows[::-1]):
        source.write_text("".join(json.dumps(one) + "\n" for one in order))
        found.append([path.read_text() for path in write(source, tmp_path / "out")])
    assert found[0] == found[1]
    prompts, held_out = (set(text.splitlines()) for text in found[0])
    assert (len(prompts), len(held_out), prompts & held_out) == (2 * HELD_OUT, HELD_OUT, set())


def test_a_file_with_too_few_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(row(1)) + "\n")
    with pytest.raises(DataError, match="has 1 short problems"):
        write(tmp_path / "train.jsonl", tmp_path / "out")
