"""What is said at a run's end."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.operate.ending import ending
from services import durable
from services.contracts import EvaluationMetrics
from services.run_folder import RunFolder
from tests.support.recorded_run import metrics


def run_of(path: Path, *, rounds: int, total: int, evaluated: dict[int, float]) -> RunFolder:
    folder = RunFolder(path).create()
    folder.note_rounds_total(total)
    for number in range(rounds):
        found = tuple(
            EvaluationMetrics(weight_version=number + 1, temperature=1.0, samples=4, pass_at_k={"sums": {1: value}})
            for value in [evaluated.get(number + 1)]
            if value is not None
        )
        durable.append_line(folder.metrics, metrics(number, evaluations=found, round_s=50.0).as_line())
    return folder


def test_a_finished_run_says_what_it_gained_and_where_the_model_is(tmp_path: Path) -> None:
    folder = run_of(tmp_path, rounds=4, total=4, evaluated={2: 0.25, 4: 0.75})
    first, *rest = ending(folder)
    assert first == "finished: 4 of 4 rounds, 3 min 20 s of training"
    assert rest[0] == "  pass@1 75.0% at version 4, temperature 1; 25.0% at version 2 (+50.0 points)"
    assert rest[1].startswith("  loss ")
    assert rest[2] == f"model: version 4; write it as a Hugging Face folder: sept export --run {tmp_path} MODEL_FOLDER"
    assert rest[3:] == [f"look at it again: sept page {tmp_path}"]


def test_a_run_without_evaluations_says_how_to_measure_it(tmp_path: Path) -> None:
    assert ending(run_of(tmp_path, rounds=2, total=2, evaluated={}))[-1].startswith(f"measure it: sept eval {tmp_path}")


@pytest.mark.parametrize("rounds", [0, 3])
def test_a_stopped_run_says_how_to_go_on(tmp_path: Path, rounds: int) -> None:
    lines = ending(run_of(tmp_path, rounds=rounds, total=9, evaluated={}))
    assert lines[0].startswith("stopped")
    assert lines[-1].endswith(f"sept run {tmp_path / 'config.toml'}")
