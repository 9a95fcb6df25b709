"""What `sept run` decides before it starts anything: commands, environments, addresses, refusals."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import pytest
import safetensors.numpy
from rich.console import Console

from deploy import endpoints
from deploy.load_settings import load
from deploy.local.run import run_local
from deploy.placement import VISIBLE
from deploy.run_memory import place_parts
from deploy.settings import Settings
from services.errors import ConfigError, SeptError, UnavailableError
from services.run_folder import RunFolder
from tests.support import tiny_models


def settings_of(tmp_path: Path, *sets: str) -> Settings:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"question": "1+1="}\n')
    model = tmp_path / "model"
    if not model.exists():
        tiny_models.save_with_words(model)
    needed = (f"run.dir={tmp_path / 'run'}", f"model.path={model}", f"data.path={data}", "services.port=0")
    return load(None, [*needed, *sets], environ={})


async def start(settings: Settings) -> None:
    await run_local(settings, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("leader", "setting", "learners"),
    [
        ("learner", "training.ranks=2", ("0", "1")),
        ("learner", "training.device=cpu", ()),
        ("evaluator", "training.ranks=2", ()),
    ],
)
def test_only_a_learner_on_gpus_takes_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leader: str, setting: str, learners: tuple[str, ...]
) -> None:
    monkeypatch.setenv(VISIBLE, "0,1,2")
    placement = place_parts(settings_of(tmp_path, setting), leader=leader)
    assert (placement.learner, placement.generators_limit) == (learners, 3 - len(learners))


async def test_too_few_gpus_are_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "0,1")
    with pytest.raises(ConfigError, match=r"generator\.count is 2.*the learner takes 1 of 2"):
        await start(settings_of(tmp_path, "generator.count=2"))
    assert not (tmp_path / "run").exists()


async def test_a_run_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path is not set"):
        await start(settings_of(tmp_path, "model.path="))


@pytest.mark.parametrize("sets", [(), ("redis.url=redis://:secret@localhost:1",)])
async def test_a_redis_that_the_other_hosts_cannot_reach_is_refused(tmp_path: Path, sets: tuple[str, ...]) -> None:
    settings = settings_of(tmp_path, "training.ranks=4", "training.nodes=2", *sets)
    with pytest.raises(ConfigError, match=r"training\.nodes is 2, and redis\.url is (not set|an address of loopback)"):
        await start(settings)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("model/config.json", "{}", "names no model_type"),
        ("model/model.safetensors", "cut", r"model\.safetensors cannot be read"),
        ("model/chat_template.jinja", "{% if %}", r"chat_template\.jinja is no Jinja template"),
        ("prompts.jsonl", '{"question": "1+1="}\n{"question": 5}\n', r"prompts\.jsonl line 2: question is a number"),
    ],
)
async def test_bad_input_is_refused_before_anything_starts(tmp_path: Path, name: str, content: str, found: str) -> None:
    settings = settings_of(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(SeptError, match=found):
        await start(settings)
    assert not (tmp_path / "run").exists()


async def test_a_port_that_is_taken_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"services\.port {port} on 127\.0\.0\.1 is taken"):
            await start(settings_of(tmp_path, f"services.port={port}"))
    assert endpoints.read(RunFolder(tmp_path / "run")) is None


async def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, not a folder")
    with pytest.raises((UnavailableError, FileExistsError)):
        await start(settings_of(tmp_path))


async def test_a_run_that_cannot_go_on_leaves_a_flight_record(tmp_path: Path) -> None:
    """The real parts start; the learner finds a weight missing, says so, and the run ends with its words."""
    settings = settings_of(tmp_path, "generator.count=0")
    weights = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    missing = next(name for name in tensors if "q_proj.weight" in name)
    kept = {name: tensor for name, tensor in tensors.items() if name != missing}
    safetensors.numpy.save_file(kept, weights, {"format": "pt"})
    with pytest.raises(UnavailableError, match=r"learner died after .*exit code 3") as caught:
        await start(settings)
    assert missing in caught.value.message
    (record,) = (tmp_path / "run").glob("flight-*.json")
    assert missing in record.read_text()
    assert endpoints.read(RunFolder(tmp_path / "run")) is None
