"""What is kept of a finished run, and when it no longer counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.settings import Settings
from learner.evaluation.benchmarks import problems_digest
from learner.evaluation.grader_version import grader_version
from services.errors import ConfigError
from studies.finished_runs import FinishedRun, differs
from studies.study_file import cells, load_study
from tests.support.studies import FILE, study_file

RESULTS: dict[str, Any] = {
    "benchmarks": {"held": {"problems": problems_digest([(0, "2+2?", "4")])}},
    "top_p": 1.0,
    "system_prompt": "",
    "grader": grader_version(),
}


def settings(folder: Path, *sets: str) -> Settings:
    """Of a study whose benchmark is there."""
    held_out = folder / "held.jsonl"
    if not held_out.exists():
        held_out.write_text('{"question": "2+2?", "answer": "4"}\n')
    text = FILE.replace("held=held.jsonl", f"held={held_out}")
    return cells(load_study(study_file(folder, text), sets))[1].settings


def test_a_finished_run_is_read_back_as_it_was_kept(tmp_path: Path) -> None:
    kept = FinishedRun(tmp_path / "kept", "a-s0")
    assert kept.read(settings(tmp_path)) is None
    kept.write(settings(tmp_path), RESULTS, {"s a round": 1.5}, untrained="d", seconds=61.4, curve={0: 50.0, 10: 61.5})
    found = kept.read(settings(tmp_path, "model.path=elsewhere", "generator.count=3", "training.device=cpu"))
    assert found is not None
    assert (found["results"], found["speed"], found["seconds"]) == (RESULTS, {"s a round": 1.5}, 61)
    assert str(tmp_path) not in kept.path.read_text()


@pytest.mark.parametrize("changed", ["training.learning_rate=1e-3", "sampling.tau_start=0.3", "training.rounds=4"])
def test_a_run_of_other_settings_is_refused(tmp_path: Path, changed: str) -> None:
    kept = FinishedRun(tmp_path / "kept", "a-s0")
    kept.write(settings(tmp_path), RESULTS, {}, untrained="d", seconds=1)
    with pytest.raises(ConfigError, match=f"differs from this study in {changed.partition('=')[0]}"):
        kept.read(settings(tmp_path, changed))


def test_a_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    kept = FinishedRun(tmp_path, "a-s0")
    kept.path.write_text("{")
    with pytest.raises(ConfigError, match=r"a-s0\.json cannot be read"):
        kept.read(settings(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"system_prompt": "Think."}, ["system_prompt"]),
        ({"grader": "another"}, ["grader"]),
        ({"grading": "strict"}, ["grading"]),
        ({"max_response_tokens": 5}, ["max_response_tokens"]),
        ({"benchmarks": {}}, []),
    ],
)
def test_results_of_another_prompt_or_grader_differ(tmp_path: Path, changes: dict[str, Any], said: list[str]) -> None:
    assert differs(RESULTS | changes, settings(tmp_path)) == said


def test_results_of_other_problems_differ(tmp_path: Path) -> None:
    asked = settings(tmp_path)
    assert differs(RESULTS, asked) == []
    (tmp_path / "held.jsonl").write_text(json.dumps({"question": "2+2?", "answer": "5"}) + "\n")
    assert differs(RESULTS, asked) == ["benchmark held"]
