"""Both verifiers on the same answers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.verifiers import compare, main
from learner.evaluation.generations import Generation
from learner.grading.math_grading import Outcome


def answers(problem: int, *responses: str) -> list[Generation]:
    return [
        Generation(
            benchmark="sums",
            temperature=1.0,
            problem=problem,
            sample=sample,
            outcome=Outcome.WRONG,
            question="2+2?",
            truth="4",
            answer="",
            response=response,
            finish_reason="stop",
            response_tokens=3,
            weight_version=0,
            generator_id="g",
        )
        for sample, response in enumerate(responses)
    ]


GENERATIONS = answers(0, r"It is \boxed{4}.", "The answer is 4.") + answers(1, r"It is \boxed{5}.", "The answer is 4.")


def test_answers_without_a_box_count_under_one_verifier_alone() -> None:
    found = compare(GENERATIONS)
    assert (found.tolerant.mean, found.strict.mean, found.difference.mean) == pytest.approx((75.0, 25.0, 50.0))
    assert found.unboxed_correct == 2
    assert (found.difference.low, found.difference.high) == pytest.approx((50.0, 50.0)), "both problems differ alike"


def test_an_evaluations_file_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "generations.jsonl"
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in GENERATIONS))
    assert main([str(path)]) == 0
    assert "difference 50.0" in capsys.readouterr().out
