"""Whole runs, started as people start them: from anywhere, in terminals and pipes that go away, with nohup."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy import endpoints, exit_codes
from deploy.endpoints import Endpoints
from deploy.local.processes import MARK
from deploy.same_code import ROOT, sept_command
from services.run_folder import RunFolder
from tests.support import scripted_run
from tests.support.endpoint import open_endpoint, served
from tests.support.weight_samples import first_version

LASTS_S = 200.0
MANY_ROUNDS = 400


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_run.write(tmp_path_factory.mktemp("world"))


@pytest.fixture
def others_code(tmp_path: Path) -> Path:
    """A folder with a person's own modules, which happen to be called as ours and as our dependencies are."""
    folder = tmp_path / "of_my_own"
    (folder / "services").mkdir(parents=True)
    for path in (folder / "services/__init__.py", folder / "learner.py", folder / "redis.py"):
        path.write_text("raise SystemExit('the code of somebody else')\n")
    return folder


def command(config: Path, folder: RunFolder, rounds: int, *prefix: str) -> list[str]:
    sets = (f"run.dir={folder.path}", "services.port=0", f"training.rounds={rounds}", "deadlines.rollouts_s=60")
    return [*prefix, *sept_command("run", str(config)), *(word for text in sets for word in ("--set", text))]


def environ(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def finish(process: subprocess.Popen[Any]) -> int:
    try:
        return process.wait(LASTS_S)
    finally:
        process.kill()


def parts_of(folder: RunFolder) -> list[int]:
    mark = f"{MARK}={folder.path.resolve()}".encode()
    return [pid for pid, found in _environments() if mark in found]


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue


def events_of(folder: RunFolder) -> str:
    return folder.log_of("supervisor").read_text()


@pytest.mark.timeout(400)
def test_a_run_goes_on_without_its_reader_its_terminal_and_beside_somebody_elses_code(
    config: Path, tmp_path: Path, others_code: Path
) -> None:
    """`nohup sept run ... | head -1`, in a folder and with a PYTHONPATH that hold other modules of the same names.

    Then it is started again with fewer rounds than it has: it ends as finished, and says so.
    """
    folder = RunFolder(tmp_path / "run")
    env = environ(PYTHONPATH=os.pathsep.join((str(others_code), str(ROOT))), ALL_PROXY="socks5h://127.0.0.1:9")
    env |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": "localhost,::1,fd00::/8"}
    options: Mapping[str, Any] = {"cwd": others_code, "env": env, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(command(config, folder, 6, "nohup"), stdout=subprocess.PIPE, **options) as run:
        assert run.stdout is not None
        assert b"run_starting" in run.stdout.readline()
        while b"round 0" not in run.stdout.readline():
            assert run.poll() is None
        run.stdout.close()
        run.send_signal(signal.SIGHUP)
        assert finish(run) == 0
    assert [metrics.round for metrics in folder.rounds()] == list(range(6))
    assert '"stopping"' not in events_of(folder)
    assert not (parts_of(folder) or folder.endpoints.exists())

    again = subprocess.run(
        command(config, folder, 4), capture_output=True, text=True, timeout=LASTS_S, check=False, **options
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing_left_to_train rounds_done=6 rounds_total=4" in again.stdout
    assert "settings_changed key=training.rounds takes_effect=with the next round" in again.stdout
    assert "part_died" not in events_of(folder)
    assert len(list(folder.rounds())) == 6


@pytest.mark.timeout(400)
def test_a_run_whose_terminal_is_closed_drains(config: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    controller, terminal = pty.openpty()

    def take_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    run = subprocess.Popen(
        command(config, folder, MANY_ROUNDS),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environ(),
        preexec_fn=take_the_terminal,
    )
    os.close(terminal)
    while not (folder.metrics.exists() and len(list(folder.rounds())) >= 2):
        assert run.poll() is None
        os.read(controller, 1 << 16)
    os.close(controller)  # SIGHUP, and EIO for whoever writes
    assert finish(run) == 128 + signal.SIGHUP
    assert '"stopping", "signal": "SIGHUP"' in events_of(folder)
    assert '"part_killed"' not in events_of(folder)
    assert not (parts_of(folder) or folder.endpoints.exists())
    assert folder.checkpointed()


@pytest.mark.timeout(400)
def test_a_terminal_that_takes_nothing_does_not_keep_a_run_from_stopping(config: Path, tmp_path: Path) -> None:
    """As after Ctrl-S, or in a pager that nobody scrolls."""
    folder = RunFolder(tmp_path / "run")
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * 4096)
    run = subprocess.Popen(
        command(config, folder, MANY_ROUNDS), stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, env=environ()
    )
    os.close(writer)
    try:
        while not (folder.metrics.exists() and len(list(folder.rounds())) >= 2):
            assert run.poll() is None
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(0.1)
        run.terminate()
        assert finish(run) == 128 + signal.SIGTERM
    finally:
        os.close(reader)
    assert not (parts_of(folder) or folder.endpoints.exists())


@pytest.mark.timeout(400)
def test_a_signal_to_all_processes_of_a_run_drains_it(config: Path, tmp_path: Path) -> None:
    """As systemd stops a unit: Redis goes down first, and the parts get the supervisor's signal as well."""
    folder = RunFolder(tmp_path / "run")
    run = subprocess.Popen(
        command(config, folder, MANY_ROUNDS), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environ()
    )
    while len(list(folder.rounds())) < 2:
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(0.1)
        assert run.poll() is None
    for pid in [run.pid, *parts_of(folder)]:
        os.kill(pid, signal.SIGTERM)
    assert finish(run) == 128 + signal.SIGTERM
    events = events_of(folder)
    assert '"part_killed"' not in events
    assert '"part_ended", "part": "learner", "exit_code": 143' in events
    assert '"part_ended", "part": "generator-0", "exit_code": 0' in events
    assert not (parts_of(folder) or folder.endpoints.exists())


async def test_addresses_that_were_left_behind_lead_no_generator_to_another_run(tmp_path: Path, redis_url: str) -> None:
    """The run of folder A was killed, and B's services have A's port by now."""
    gone = RunFolder(tmp_path / "a").create()
    gone.config.write_text('[generator]\nengine = "scripted"\n')
    async with open_endpoint(tmp_path / "b", redis_url) as other, served(other.app) as url:
        other.store.publish(0, first_version())
        endpoints.write(gone, Endpoints(redis_url=redis_url, services_url=url))
        generator = await asyncio.create_subprocess_exec(
            *sept_command("generator", "--config", str(gone.config)), env=environ(), stderr=asyncio.subprocess.PIPE
        )
        _, said = await asyncio.wait_for(generator.communicate(), 60)
    assert generator.returncode == exit_codes.UNAVAILABLE
    assert f"are those of run {other.keys.run_id}, not of {gone.run_id}" in said.decode()
