"""Finding a run, and refusing what cannot be asked of it."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest

from deploy.endpoints import Endpoints, write
from deploy.locks import run_lock
from deploy.operate.run_commands import (
    check_generators_target,
    check_rollback,
    client_of,
    confirmed,
    files_not_exported,
    find_run,
    send,
    show_logs,
    show_status,
    watch_status,
)
from services import durable
from services.errors import ConfigError, UnavailableError
from services.net import free_port
from services.run_folder import RunFolder, version_name
from tests.support.recorded_run import metrics

WHERE = Endpoints(redis_url="redis://:secret@h:1", services_url="http://h:2", token="hush")


def test_an_export_says_which_files_of_the_model_it_lacks(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").create()
    assert files_not_exported(run) == {}
    model = tmp_path / "model"
    model.mkdir()
    shard = "model-00001-of-00002.safetensors"
    for name in ("config.json", "LICENSE", "pytorch_model.bin", shard, "model.safetensors.index.json"):
        (model / name).write_text("{}")
    run.config.write_text(f'[model]\npath = "{model}"\n')
    assert list(files_not_exported(run)) == ["pytorch_model.bin"], "the trained weights are in the others' place"


def test_the_active_run_is_found_before_the_newest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        find_run(None, runs=tmp_path)
    active, newest = RunFolder(tmp_path / "active").create(), RunFolder(tmp_path / "newest").create()
    durable.write_file(newest.config, "")
    os.utime(newest.config, (2e9, 2e9))
    write(newest, WHERE)  # left by a supervisor that was killed
    with run_lock(active):
        assert find_run(None, runs=tmp_path).path == active.path
    assert find_run(None, runs=tmp_path).path == newest.path
    assert find_run(active.path).path == active.path
    with pytest.raises(ConfigError, match="not a run's folder"):
        find_run(tmp_path)


def test_a_run_that_is_not_active_says_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no run is active in") as caught:
        client_of(RunFolder(tmp_path))
    assert "start it again with `sept run" in caught.value.hint


def test_services_that_are_away_are_named_only_while_a_supervisor_runs_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    write(folder, WHERE.model_copy(update={"services_url": f"http://127.0.0.1:{free_port()}"}))
    with pytest.raises(UnavailableError, match="no run is active in"):
        send(folder.path, lambda run: run.stop())
    with run_lock(folder), pytest.raises(UnavailableError, match=r"the services at .* do not answer"):
        send(folder.path, lambda run: run.stop())


def test_the_status_of_a_run_that_was_killed_is_its_last_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path).create()
    write(folder, WHERE.model_copy(update={"services_url": f"http://127.0.0.1:{free_port()}"}))
    durable.append_line(folder.metrics, metrics(0).as_line())
    show_status(folder.path, as_json=False)
    said = capsys.readouterr().out
    assert "no run is active in" in said
    assert f"go on: sept run {folder.config}" in said
    with pytest.raises(UnavailableError, match="no run is active in"):
        show_status(folder.path, as_json=True)


def test_endpoints_do_not_show_their_secrets() -> None:
    assert "secret" not in repr(WHERE)
    assert "hush" not in str(WHERE)


def test_a_folder_is_run_by_one_supervisor_only(tmp_path: Path) -> None:
    with (
        run_lock(RunFolder(tmp_path)),
        pytest.raises(UnavailableError, match="already being run by process"),
        run_lock(RunFolder(tmp_path)),
    ):
        pass
    with run_lock(RunFolder(tmp_path)):
        pass


def test_what_cannot_be_undone_needs_a_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert confirmed("all of it goes", yes=True)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # no terminal: nobody can be asked
    with pytest.raises(ConfigError, match="all of it goes, and nobody"):
        confirmed("all of it goes", yes=False)


def test_a_run_that_is_not_active_cannot_be_watched(tmp_path: Path) -> None:
    durable.write_file(RunFolder(tmp_path).identity, "{}")
    with pytest.raises(UnavailableError, match="no run is active"):
        watch_status(tmp_path)


def test_logs_say_when_which_part_wrote_each_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path).create()
    durable.write_file(run.identity, "{}")
    run.log_of("learner").write_text("2026-01-02T03:04:07Z [warning  ] records_lost    part=learner rounds=3\n")
    run.log_of("services").write_text('{"part": "services", "event": "up", "timestamp": "2026-01-02T03:04:05Z"}\n')
    show_logs(tmp_path, (), lines=5, since_s=None, follow=True, as_json=False)
    local = [time.strftime("%m-%d %H:%M:%S", time.localtime(1767323045 + later)) for later in (0, 2)]
    assert capsys.readouterr().out.splitlines() == [
        f"{local[0]}  services     up",
        f"{local[1]}  learner      warning: records_lost rounds=3",
    ]
    show_logs(tmp_path, ("learner",), lines=None, since_s=1767323046, follow=False, as_json=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"part": "learner", "time_s": 1767323047.0, "level": "warning", "text": "records_lost rounds=3"}
    ]


@pytest.mark.parametrize("target", [-1, 10_001])
def test_numbers_of_generators_that_no_run_takes_are_refused_before_anything_is_sent(target: int) -> None:
    with pytest.raises(ConfigError, match=f"{target} generators are not possible"):
        check_generators_target(target)


def test_more_generators_than_the_machine_holds_are_doubted() -> None:
    assert check_generators_target(1) == ""
    assert "5000 generators on this machine share its" in check_generators_target(5000)


def test_a_version_without_a_checkpoint_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    for version in (3, 4):
        (folder.checkpoints / version_name(version)).mkdir()
    durable.append_line(folder.metrics, metrics(3).as_line())
    with pytest.raises(ConfigError, match="no checkpoint of version 9999") as refused:
        check_rollback(tmp_path, 9999)
    assert "there are: 3, 4" in refused.value.hint
    with pytest.raises(ConfigError, match="at version 4 already"):
        check_rollback(tmp_path, 4)
    check_rollback(tmp_path, 3)
