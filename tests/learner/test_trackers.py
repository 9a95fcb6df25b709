"""What metrics.jsonl says, TensorBoard shows; what is not installed is named when the run starts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from learner.records import Records
from learner.trackers import numbers_of, open_trackers
from services.contracts import EvaluationMetrics
from services.errors import ConfigError
from services.runfolder import RunFolder
from tests.learner.test_records import answers_of, metrics_of

# TensorBoard's protobuf files and numpy calls warn of deprecations
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def shown(folder: RunFolder, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_shows_every_round_once_also_of_a_run_that_went_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    for first, loss in ((0, 1.0), (2, 2.0)):
        records = Records(folder, open_trackers(["tensorboard"], folder))
        records.cut_back(first)
        for number in range(first, 4):
            records.write(metrics_of(number).model_copy(update={"loss": loss}), answers_of(number))
        records.close()
    assert shown(folder, "loss") == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0)]


def test_an_evaluation_that_comes_late_is_shown_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    found = EvaluationMetrics(weight_version=1, temperature=0.6, samples=4, pass_at_k={"gsm8k": {1: 0.25, 4: 0.5}})
    records = Records(folder, open_trackers(["tensorboard"], folder))
    records.cut_back(0)
    records.write(metrics_of(0), answers_of(0))
    records.add_evaluations(0, (found,))
    records.close()
    assert shown(folder, "gsm8k/pass_at_4/tau_0.6") == [(0, 0.5)]


def test_names_and_texts_are_no_numbers() -> None:
    numbers = numbers_of(metrics_of(3))
    assert numbers["round"] == 3
    assert all(isinstance(value, int | float) for value in numbers.values())


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(tmp_path: Path, name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(ConfigError, match=name) as refused:
        open_trackers([name], RunFolder(tmp_path))
    assert refused.value.hint == f"pip install 'sept[{name}]', or leave it out"
