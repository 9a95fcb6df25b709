"""Reports of studies: tables, verdicts, distances to published numbers, the figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from studies.report import RunResult, write_report
from studies.study_file import Study

MODELS: dict[str, Any] = {"": {}}


def study(folder: Path, models: dict[str, Any] = MODELS) -> Study:
    values = {
        "study": {
            "title": "Title",
            "dir": folder,
            "seeds": [0],
            "claims": [{"text": "a beats b", "better": "a", "worse": "b"}],
        },
        "common": {},
        "models": models,
        "methods": {name: {"label": name.upper(), "sections": {}} for name in "ab"},
    }
    return Study.model_validate(values)


def run_result(
    method: str, seed: int, average: float, *, model: str = "", correct: list[int] | None = None
) -> RunResult:
    curve: dict[str, Any] = {
        "pass_at_k": {str(k): {"value": average} for k in (1, 8, 32)},
        "average": {"value": average},
    }
    benchmarks = {"held": {"correct": correct} if correct else {}}
    outcomes = {"correct": 60, "wrong": 30, "no_answer": 10, "cut_short": 25}
    at_1 = {"mean": curve, "benchmarks": benchmarks, "outcomes": outcomes}
    results = {"best_temperature": 1.0, "samples": 32, "temperatures": {"1": at_1}}
    return RunResult(model, method, seed, results, {"s a round": 2.0 + seed})


def test_the_report_has_table_verdicts_and_figure(tmp_path: Path) -> None:
    results = [run_result("a", seed, 0.95 + seed / 1000) for seed in range(3)] + [
        run_result("b", seed, 0.90 + seed / 1000) for seed in range(3)
    ]
    paths = write_report(study(tmp_path), results)
    assert [path.name for path in paths] == ["report.md", "report.json", "report.png"]
    text = paths[0].read_text()
    assert "| A | 1 | 3 | 95.1 ± 0.2 |" in text
    assert "| 95.1 ± 0.2 | 25.0 |" in text, "the share of answers that were cut short"
    assert "| a beats b | +5.0 |" in text
    assert "**holds**" in text
    assert json.loads(paths[1].read_text())["claims"][0]["verdict"] == "holds"
    assert paths[2].stat().st_size > 1000


def test_with_few_seeds_intervals_are_over_problems(tmp_path: Path) -> None:
    results = [
        run_result("a", 0, 0.75, correct=[32, 16] * 40),
        run_result("b", 0, 0.5, correct=[16, 16] * 40),
    ]
    text = write_report(study(tmp_path), results)[0].read_text()
    assert "| A | 1 | 1 | 75.0 [" in text
    assert "**holds**" in text


def test_every_cell_says_how_far_it_is_from_the_published_number(tmp_path: Path) -> None:
    models = {
        "m": {"label": "M", "published": {"a": 70.0}},
        "n": {"label": "N"},
    }
    results = [run_result("a", 0, 0.75, model=name, correct=[32, 16] * 40) for name in models]
    paths = write_report(study(tmp_path, models), results)
    table = paths[0].read_text().partition("s a round")[0]
    lines = {line.split(" | ")[0]: line for line in table.splitlines()}
    assert "| 70.0 | " in lines["| M · A"]
    assert lines["| N · A"].endswith("|  |  |")
    found = json.loads(paths[1].read_text())["methods"]
    assert list(found) == ["m a", "n a"]
    assert found["m a"]["published"] == 70.0


def test_what_was_followed_has_its_peak_its_fall_and_a_figure(tmp_path: Path) -> None:
    curves = [{0: 50.0, 10: 70.0, 20: 60.0}, {0: 52.0, 10: 66.0, 20: 68.0}, {0: 51.0, 10: 69.0, 20: 61.0}]
    runs = [replace(run_result("a", seed, 0.6), curve=curve) for seed, curve in enumerate(curves)]
    paths = write_report(study(tmp_path), [*runs, run_result("b", 0, 0.5)])
    assert paths[-1].name == "curves.png"
    (row,) = [line for line in paths[0].read_text().splitlines() if line.startswith("| A |") and " 13 " in line]
    assert row == "| A | 51.0 ± 2.5 | 69.0 ± 2.5 | 13 | 63.0 ± 10.8 | 6.0 ± 13.1 |"


def test_a_model_that_has_not_run_yet_has_no_panel_among_the_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("studies.report.draw_curves", lambda panels, path: drawn.extend(panels))
    runs = [replace(run_result("a", 0, 0.6, model="m"), curve={0: 50.0, 10: 70.0})]
    write_report(study(tmp_path, {"m": {"label": "M"}, "n": {"label": "N"}}), runs)
    assert drawn == ["M"]
