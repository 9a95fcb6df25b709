"""Results of an evaluation: from graded answers to pass@k, by temperature, and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from learner.evaluation.generations import Generation
from learner.evaluation.results import as_json, reported_ks, summarise, write_results
from learner.grading.math_grading import Outcome
from services.errors import DataError


def answer(benchmark: str, problem: int, sample: int, correct: bool, **changes: Any) -> Generation:
    values: dict[str, Any] = {
        "temperature": 1.0,
        "question": "?",
        "truth": "4",
        "answer": "4",
        "response": "4",
        "finish_reason": "stop",
        "response_tokens": 1,
        "weight_version": 0,
        "generator_id": "g",
    }
    outcome = Outcome.CORRECT if correct else Outcome.WRONG
    return Generation(benchmark, problem=problem, sample=sample, outcome=outcome, **(values | changes))


def answers(benchmark: str, correct: list[list[bool]], **changes: Any) -> list[Generation]:
    return [
        answer(benchmark, problem, sample, right, **changes)
        for problem, samples in enumerate(correct)
        for sample, right in enumerate(samples)
    ]


GRADED = [
    *answers("a", [[True, False], [False, False]]),
    *answers("b", [[True, True]]),
    *answers("a", [[True, True], [True, False]], temperature=0.6),
    *answers("b", [[False, True]], temperature=0.6, finish_reason="length"),
]


def test_each_temperature_has_its_table_and_the_best_has_the_highest_average() -> None:
    results = summarise(GRADED, samples=2)
    assert list(results.by_temperature) == [0.6, 1.0]
    at_1 = results.by_temperature[1.0]
    assert (at_1.benchmarks["a"][1].value, at_1.benchmarks["a"][2].value, at_1.mean[1].value) == (0.25, 0.5, 0.625)
    assert results.by_temperature[0.6].mean[1].value == 0.625
    assert results.best_temperature == 0.6, "the lower of equals"
    assert results.outcomes == {
        0.6: {"correct": 4, "wrong": 2, "cut_short": 2},
        1.0: {"correct": 3, "wrong": 3, "cut_short": 0},
    }


def test_samples_beyond_those_asked_for_are_ignored_and_missing_ones_refused() -> None:
    more = [*GRADED, answer("a", 0, 2, True), answer("a", 0, 2, True, temperature=0.6)]
    assert summarise(more, samples=2) == summarise(GRADED, samples=2)
    with pytest.raises(DataError, match=r"problem 0 of a has 2 of 3 answers at 0\.6"):
        summarise([one for one in more if one.temperature == 0.6 and one.sample < 2], samples=3)


def test_metrics_have_powers_of_two_and_n() -> None:
    assert [reported_ks(samples) for samples in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    first, second = summarise(GRADED, samples=2).metrics(weight_version=7)
    assert (first.temperature, second.temperature, second.weight_version, second.samples) == (0.6, 1.0, 7, 2)
    assert second.pass_at_k == {"a": {1: 0.25, 2: 0.5}, "b": {1: 1.0, 2: 1.0}, "mean": {1: 0.625, 2: 0.75}}


def test_the_file_holds_all_of_it(tmp_path: Path) -> None:
    results = summarise(GRADED, samples=2)
    write_results(tmp_path / "results.json", results, {"model": "m"})
    found = json.loads((tmp_path / "results.json").read_text())
    assert found == json.loads(json.dumps(as_json(results, {"model": "m"})))
    assert (found["model"], found["samples"], found["best_temperature"]) == ("m", 2, 0.6)
    assert found["average_over_k"] == [1]
    assert list(found["temperatures"]) == ["0.6", "1"]
    curve = found["temperatures"]["1"]["benchmarks"]["a"]
    assert (curve["problems"], curve["pass_at_k"]["2"]["value"], sum(curve["correct"])) == (2, 0.5, 1)
    assert curve["average"]["low"] <= curve["average"]["value"] <= curve["average"]["high"]
