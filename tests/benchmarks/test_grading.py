"""The comparison of both graders on a small benchmark."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.grading import NEIGHBOURS, MathVerify, boxed, main, other_pairs
from learner.evaluation.generations import Generation
from learner.grading.math_grading import Outcome


def test_both_graders_are_counted_and_their_disagreements_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["40_9", "36", "x+1", r"\frac{1}{2}"]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"question": "?", "answer": answer}) + "\n" for answer in answers))
    assert main([f"mine={path}", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    equal = {"name": "mine", "pairs": 4, "ours": 4, "theirs": 4, "undecided": 0, "disagreements": []}
    assert result["to_itself"] == equal
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


def test_math_verify_is_ended_at_its_limit_and_starts_anew() -> None:
    formula = boxed("+".join(rf"\frac{{x^{{{power}}}}}{{\sqrt{{{power}}}}}" for power in range(2, 40)))
    with MathVerify(limit_s=0.001) as math_verify:
        assert [math_verify.correct(formula, "5") for _ in range(2)] == [None, None]


def test_stored_answers_are_graded_by_all_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    responses = {r"So \boxed{5}.": "5", "The answer is 5.": "5", r"\boxed{4}": "5", r"\boxed{40_9}": "36"}
    path = tmp_path / "generations.jsonl"
    path.write_text(
        "".join(json.dumps(asdict(generation(number, *each))) + "\n" for number, each in enumerate(responses.items()))
    )
    assert main(["--answers", str(path), "--json"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    verdicts = [(one["ours"], one["strict"], one["math_verify"]) for one in json.loads(last)]
    assert verdicts == [(True, True, True), (True, False, True), (False, False, False), (True, False, False)]
    assert table[3].startswith("| all | 4 | 3 (75.0%) | 1 (25.0%) | 2 (50.0%) | 0 | 75.00% | 50.00% |")


def generation(problem: int, response: str, truth: str) -> Generation:
    return Generation(
        "mine", 1.0, problem, 0, Outcome.WRONG, "?", truth, "", response, "stop", 4, 0, "generator-0"
    )  # graded anew
