"""What the builder adds to the parts it puts together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from learner import build
from learner.build import build_training, why_given_up
from learner.config import LearnerSettings, ModelConfig, TrainingConfig
from learner.memory.fitting import Room
from learner.memory.model_shape import read_shape
from learner.memory.rank_memory import estimate_rank
from services.errors import ConfigError
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect
from services.streams.tasks import TaskIssuer
from tests.support import tiny_models
from tests.support.answering import reject
from tests.support.curricula import curriculum


def test_why_a_task_was_given_up_is_the_newest_reason(redis_url: str) -> None:
    keys = Keys("build")
    first, second = curriculum(2, 2, rounds=1).tasks_of(0)
    with connect(redis_url) as client:
        for task, reason in ((first, "too long"), (first, "out of memory"), (second, "a bad prompt")):
            TaskIssuer(client, keys).issue([task])
            reject(redis_url, keys, reason)
        assert why_given_up(client, keys, first.task_id) == "out of memory"
        assert why_given_up(client, keys, "another") == ""


class Loaded(Exception):  # noqa: N818 - not an error: weights would be read now
    """Carries how the model would be loaded."""

    def __init__(self, how: dict[str, Any]) -> None:
        self.how = how


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(path: str, **how: Any) -> None:
        raise Loaded(how)

    monkeypatch.setattr(build, "load_model", load_model)


@pytest.mark.usefixtures("loading")
def test_a_learner_that_cannot_fit_is_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "room_on", lambda _: Room("cpu", 1 << 20))
    settings = LearnerSettings(model=ModelConfig(path=str(tiny_models.save(tmp_path / "model"))))
    with pytest.raises(ConfigError, match=r"the learner needs .* GiB of host memory"):
        build_training(RunFolder(tmp_path / "run").create(), settings)


@pytest.mark.usefixtures("loading")
@pytest.mark.parametrize(
    ("chosen", "spare", "loaded"), [("auto", 0, "off"), ("auto", -1, "light"), ("full", 0, "full")]
)
def test_recomputation_follows_what_the_device_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: Any, spare: int, loaded: str
) -> None:
    model = tiny_models.save(tmp_path / "model", tiny_models.config(num_hidden_layers=24))
    settings = LearnerSettings(
        model=ModelConfig(path=str(model)), training=TrainingConfig(device="cpu", gradient_checkpointing=chosen)
    )
    shape = read_shape(model)
    assert shape is not None
    needed = estimate_rank(shape, settings, device="cpu", recomputation="off").total
    monkeypatch.setattr(build, "room_on", lambda _: Room("cpu", needed + spare))
    with pytest.raises(Loaded) as caught:
        build_training(RunFolder(tmp_path / "run").create(), settings)
    assert caught.value.how["gradient_checkpointing"] == loaded
