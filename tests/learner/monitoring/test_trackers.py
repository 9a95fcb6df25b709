"""Trackers get the numbers of metrics.jsonl; a missing package is named when the run starts."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from learner.monitoring.records import Records
from learner.monitoring.trackers import numbers_of, open_trackers
from services.contracts import EvaluationMetrics
from services.errors import ConfigError
from services.run_folder import RunFolder
from tests.support.round_records import answers_of, metrics_of

# TensorBoard's protobuf files and numpy calls warn of deprecations
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


WENT_BACK = """
import sys
from pathlib import Path
from learner.monitoring.trackers import open_trackers
from services.run_folder import RunFolder

for first, loss in ((0, 1.0), (2, 2.0)):
    (tracker,) = open_trackers([sys.argv[1]], RunFolder(Path("run")).create())
    tracker.begin(first)
    for round_ in range(first, 4):
        tracker.log(round_, {"loss": loss, "math500/pass_at_8/tau_0.6": 0.5})
    tracker.close()
"""
"""A run of four rounds whose learner trains the last two again."""
TRAINED = [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (2, 2.0), (3, 2.0)]
"""Round and loss in the order of training."""


def go_back(name: str, folder: Path, **variables: str) -> tuple[str, str]:
    """Have a process in `folder` track that run; returns the run's id and, if the process failed, its last error."""
    env = os.environ | variables | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WENT_BACK, name]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    return RunFolder(folder / "run").run_id, done.stderr if done.returncode else ""


def shown(folder: RunFolder, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_shows_every_round_once_also_after_a_rollback(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    for first, loss in ((0, 1.0), (2, 2.0)):
        records = Records(folder, open_trackers(["tensorboard"], folder))
        records.cut_back(first)
        for number in range(first, 4):
            records.write(metrics_of(number).model_copy(update={"loss": loss}), answers_of(number))
        records.close()
    assert shown(folder, "loss") == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0)]


def test_an_evaluation_that_is_added_later_is_shown_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    found = EvaluationMetrics(weight_version=1, temperature=0.6, samples=4, pass_at_k={"gsm8k": {1: 0.25, 4: 0.5}})
    records = Records(folder, open_trackers(["tensorboard"], folder))
    records.cut_back(0)
    records.write(metrics_of(0), answers_of(0))
    records.add_evaluations(0, (found,))
    records.close()
    assert shown(folder, "gsm8k/pass_at_4/tau_0.6") == [(0, 0.5)]


def test_names_and_texts_are_left_out() -> None:
    numbers = numbers_of(metrics_of(3))
    assert numbers["round"] == 3
    assert all(isinstance(value, int | float) for value in numbers.values())


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_with_the_extra_that_installs_it(tmp_path: Path, name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(ConfigError, match=name) as refused:
        open_trackers([name], RunFolder(tmp_path))
    assert refused.value.hint == f"pip install 'sept[{name}]', or leave it out"


@pytest.mark.parametrize(
    ("name", "variables", "hint"),
    [
        ("mlflow", {"MLFLOW_TRACKING_URI": "nowhere://"}, "MLFLOW_TRACKING_URI says"),
        (
            "wandb",
            {"WANDB_MODE": "online", "WANDB_API_KEY": "", "WANDB_BASE_URL": "http://127.0.0.1:9"},
            "log in with `wandb login`",
        ),
    ],
)
def test_a_tracker_that_does_not_open_is_an_error_with_a_hint(
    name: str, variables: dict[str, str], hint: str, tmp_path: Path
) -> None:
    pytest.importorskip(name, reason=f"the extra `{name}` is not installed")
    _, failure = go_back(name, tmp_path, HOME=str(tmp_path), **variables)
    assert f"UnavailableError: run.trackers names {name}, which does not open" in failure
    assert f"hint: {hint}" in failure


def test_mlflow_keeps_every_round_in_one_run_and_those_trained_again_twice(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    pytest.importorskip("sqlalchemy", reason="the extra `mlflow` is not installed")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    run_id, failure = go_back("mlflow", tmp_path, MLFLOW_TRACKING_URI=store)
    assert not failure
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("sept").experiment_id])
    assert (run.info.run_name, run.info.status) == (run_id, "FINISHED")
    kept = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in kept) == sorted(TRAINED)
    assert run.data.metrics["math500/pass_at_8/tau_0.6"] == 0.5


def test_wandb_keeps_every_round_in_runs_of_one_id_and_those_trained_again_twice(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    run_id, failure = go_back("wandb", tmp_path, WANDB_MODE="offline")
    assert not failure
    histories, names = [], set()
    for path in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.HasField("run"):
                names.add((record.run.run_id, record.run.display_name, record.run.project))
            if record.HasField("history"):
                histories.append({item.key or item.nested_key[0]: item.value_json for item in record.history.item})
    assert names == {(run_id, run_id, "sept")}
    assert [(json.loads(line["round"]), json.loads(line["loss"])) for line in histories] == TRAINED
    assert {line["math500/pass_at_8/tau_0.6"] for line in histories} == {"0.5"}


def wandb_records(path: Path) -> Iterator[Any]:
    """What wandb wrote: protobuf records in LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a full record, or its last part
            yield Record.FromString(whole)
            whole = b""
