"""The comparison of both graders on a small benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.grading import NEIGHBOURS, main, other_pairs


def test_both_graders_are_counted_and_their_disagreements_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["40_9", "36", "x+1", r"\frac{1}{2}"]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"question": "?", "answer": answer}) + "\n" for answer in answers))
    assert main([f"mine={path}", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["to_itself"] == {"name": "mine", "pairs": 4, "ours": 4, "theirs": 4, "disagreements": []}
    assert result["to_others"]["pairs"] == 12
    assert sorted(result["to_others"]["disagreements"]) == [["36", "40_9", True], ["40_9", "36", True]]


def test_a_reference_is_paired_with_its_neighbours_but_not_with_itself() -> None:
    truths = [f"{number:03}" for number in range(200)]
    pairs = list(other_pairs(truths))
    assert len(pairs) == len(set(pairs))
    assert all(answer != truth for answer, truth in pairs)
    assert {answer for answer, truth in pairs if truth == "100"} == {f"{number:03}" for number in range(90, 111)} - {
        "100"
    }
    assert NEIGHBOURS * 190 < len(pairs) < NEIGHBOURS * 200
