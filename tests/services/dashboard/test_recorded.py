"""How a run stands is read from its folder: no process of it is needed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from services import durable
from services.dashboard.recorded import how_it_ended, is_active, next_step, recorded_status
from services.run_folder import EvaluationFolder, RunFolder
from services.weights.reader import WeightReader
from tests.support.recorded_run import record

FAILED = {"event": "run_failed", "error": "learner: the disk is full"}
STARTED = {"event": "run_starting"}


def noted(folder: RunFolder, *events: dict[str, str]) -> RunFolder:
    """The folder, with these events in the supervisor's log."""
    folder.log_of("supervisor").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return folder


def test_a_run_with_all_its_rounds_is_finished(tmp_path: Path) -> None:
    folder = record(tmp_path / "run", rounds=300)
    assert how_it_ended(folder) == ("finished", "300 rounds are done")
    assert next_step("finished", folder).startswith(f"sept export --run {folder.path} ")


def test_a_run_that_was_killed_is_stopped_and_goes_on_from_its_settings(tmp_path: Path) -> None:
    folder = noted(record(tmp_path / "run", rounds=30), STARTED)
    assert how_it_ended(folder) == ("stopped", "after 30 of 300 rounds")
    assert next_step("stopped", folder) == f"sept run {folder.config}"


@pytest.mark.parametrize("rounds", [1, 300])
def test_a_failure_is_named_however_far_the_run_came(tmp_path: Path, rounds: int) -> None:
    folder = noted(record(tmp_path / "run", rounds=rounds), STARTED, FAILED)
    assert how_it_ended(folder) == ("failed", "learner: the disk is full")


def test_only_the_last_start_counts(tmp_path: Path) -> None:
    folder = noted(record(tmp_path / "run", rounds=30), STARTED, FAILED, STARTED)
    assert how_it_ended(folder).state == "stopped"


def test_an_evaluation_is_finished_by_its_results(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "eval").create()
    assert how_it_ended(folder).state == "stopped"
    durable.write_file(EvaluationFolder(folder.path).results, "{}")
    assert how_it_ended(folder).state == "finished"
    assert next_step("finished", folder).endswith("results.json")


@pytest.mark.parametrize("lock", ["supervisor_lock", "learner_lock"])
def test_a_run_is_active_while_somebody_holds_a_lock_of_it(tmp_path: Path, lock: str) -> None:
    folder = record(tmp_path / "run", rounds=30)
    assert not is_active(folder)
    handle = os.open(getattr(folder, lock), os.O_RDWR | os.O_CREAT)
    assert durable.try_lock(handle)
    status = recorded_status(folder, WeightReader(folder.weights, folder.run_id))
    os.close(handle)
    assert (status.state, status.round, status.rounds_total) == ("running", 30, 300)
    assert status.seconds_left == pytest.approx(270 * 25.0)
    assert not is_active(folder)


def test_a_damaged_identity_and_log_are_no_reason_to_show_nothing(tmp_path: Path) -> None:
    folder = record(tmp_path / "run", rounds=3)
    folder.identity.write_text("{")
    folder.log_of("supervisor").write_bytes(b'\xff\n[1]\n{"event": "run_fa')
    status = recorded_status(folder, WeightReader(folder.weights, "run"))
    assert (status.run_id, status.state, status.detail) == ("run", "stopped", "after 3 rounds")
