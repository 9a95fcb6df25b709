"""Two containers with one GPU: the learner writes the engine's share, the generator waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.containers.claim_gpus import prepare
from deploy.containers.shared_gpu import SHARE, wait_as_generator
from learner.parallel.launch_env import GPU_SHARE
from services.contracts import Part, StatusSnapshot
from services.errors import ConfigError, DeadlineError
from tests.support import tiny_models
from tests.support.heartbeats import heartbeat, status_of

DEADLINE_S = 60.0
SHORT_S = 0.2


def status(state: str, *, lost: bool = False) -> StatusSnapshot:
    return status_of(learner=heartbeat(Part.LEARNER, "learner", state), learner_lost=lost)


class Services:
    """Answers with each status in turn, and goes on with the last."""

    def __init__(self, *answers: StatusSnapshot | OSError) -> None:
        self.answers: Sequence[StatusSnapshot | OSError] = answers
        self.asked = 0

    def status(self) -> StatusSnapshot:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, OSError):
            raise answer
        return answer


def wait(services: Services, folder: Path, *, deadline_s: float = DEADLINE_S) -> float | None:
    return wait_as_generator(services.status, folder, deadline_s=deadline_s, every_s=0.01)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a tiny model, on a host whose driver tells of one GPU of 24 GiB."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '0, GPU-0, 24576'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (model := tmp_path / "model").mkdir()
    path = tmp_path / "config.toml"
    path.write_text(f'[model]\npath = "{tiny_models.save(model)}"\n')
    return path


def test_the_generator_gets_what_the_learners_estimate_leaves_once_it_has_loaded(tmp_path: Path, config: Path) -> None:
    arguments, environment = prepare(["learner", "--config", str(config)], ["0"], 1, tmp_path)
    assert arguments[3:] == ["--set", "training.gradient_checkpointing=off"]
    services = Services(
        ConnectionRefusedError("the services start"),
        *(status(state) for state in ("starting", "publishing", "failed")),
        status("waiting_for_rollouts", lost=True),
        status("waiting_for_rollouts"),
    )
    fraction = wait(services, tmp_path)
    assert services.asked == 6
    assert fraction is not None and 0.5 < fraction <= 0.9
    assert fraction + float(environment[GPU_SHARE]) < 1


def test_a_share_that_a_person_has_set_is_kept(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPT_GENERATOR__MEMORY_FRACTION", "0.25")
    prepare(["learner", "--config", str(config)], ["0"], 1, tmp_path)
    assert wait(Services(status("training")), tmp_path) == 0.25


def test_a_host_without_a_learner_has_the_gpu_for_its_engine_alone(tmp_path: Path) -> None:
    assert wait(Services(status("training")), tmp_path) is None


def test_a_learner_that_was_here_and_is_not_back_yet_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / SHARE).write_text('{"memory_fraction": 0.5}')
    with pytest.raises(DeadlineError, match="the learner: it shares the only GPU"):
        wait(Services(status("training")), tmp_path, deadline_s=SHORT_S)


def test_a_learner_that_leaves_no_room_for_an_engine_is_refused(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEPT_GENERATOR__MEMORY_FRACTION", "0.99")
    with pytest.raises(ConfigError, match="the learner needs"):
        prepare(["learner", "--config", str(config)], ["0"], 1, tmp_path)
    assert not (tmp_path / SHARE).exists()
