"""What `sept run` decides before it starts anything: commands, environments, addresses, refusals."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import pytest
from rich.console import Console

from deploy import endpoints
from deploy.load_settings import load
from deploy.local.run import plan_run, run_local
from deploy.settings import Settings
from services.errors import ConfigError, UnavailableError
from services.run_folder import RunFolder


def settings_of(tmp_path: Path, *sets: str) -> Settings:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"question": "1+1="}\n')
    needed = (f"run.dir={tmp_path / 'run'}", f"model.path={tmp_path}", f"data.path={data}", "services.port=0")
    return load(None, [*needed, *sets], environ={})


async def start(settings: Settings) -> None:
    await run_local(settings, Console(file=io.StringIO()))


def test_parts_are_started_from_the_resolved_config_and_without_secrets_in_their_commands(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    secrets = ("services.token=hush", "redis.url=redis://:secret@h:1")
    plan = plan_run(settings_of(tmp_path, *secrets), folder, None, 77)
    assert plan.redis is None
    assert plan.services.argv[-2:] == ("--set", "services.port=77")
    assert plan.generator(3).argv[-2:] == ("--id", "generator-3")
    for part in (plan.services, plan.learner, plan.generator(0)):
        assert str(folder.config) in part.argv
        assert part.log == folder.log_of(part.name)
        assert not {"secret", "hush"} & set(" ".join(part.argv).split())
        assert not any(name.startswith("SEPT_") and "__" in name for name in part.env)


async def test_a_run_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path is not set"):
        await start(settings_of(tmp_path, "model.path="))


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
    """The real parts start; the learner finds no model in the folder, says so, and the run ends with its words."""
    with pytest.raises(UnavailableError, match=r"learner died .*exit code 3") as caught:
        await start(settings_of(tmp_path, "generator.count=0"))
    assert "has no config.json" in caught.value.message
    (record,) = (tmp_path / "run").glob("flight-*.json")
    assert "has no config.json" in record.read_text()
    assert endpoints.read(RunFolder(tmp_path / "run")) is None
