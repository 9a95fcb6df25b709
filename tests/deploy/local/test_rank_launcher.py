"""A learner of several processes is one part: it fails as one, and when one of them is killed all start again."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
from pathlib import Path

from rich.console import Console

from deploy import exit_codes
from deploy.load_settings import load
from deploy.local.processes import MARK
from deploy.local.rank_launcher import start_ranks
from deploy.local.run import run_local
from learner.parallel.launch_env import RANK
from services.run_folder import RunFolder
from tests.support import scripted_run

ROUNDS = 5
PATIENCE_S = 150.0


def test_the_exit_code_is_that_of_the_rank_that_failed(tmp_path: Path, redis_url: str) -> None:
    settings = load(None, ["training.ranks=2"], environ={"SEPT_REDIS__URL": redis_url})
    code = start_ranks(["learner", "--config", str(tmp_path / "none.toml")], settings, run_id="run")
    assert code == exit_codes.BAD_CONFIG


async def test_a_learner_of_two_ranks_survives_the_death_of_one(tmp_path: Path) -> None:
    """Services, redis and generators see one learner; the run ends with every round exactly once."""
    sets = ["training.ranks=2", "services.port=0", "generator.count=1"]
    settings = load(scripted_run.write(tmp_path, rounds=ROUNDS), sets, environ={})
    folder = RunFolder(settings.run.dir)
    async with asyncio.timeout(PATIENCE_S):
        running = asyncio.create_task(run_local(settings, Console(file=io.StringIO())))
        while not (folder.metrics.exists() and folder.metrics.read_text()):
            assert not running.done(), await running
            await asyncio.sleep(0.02)
        (victim,) = pids_of_rank(1, folder.path)
        os.kill(victim, signal.SIGKILL)
        assert await running is None
    assert [metrics.round for metrics in folder.rounds()] == list(range(ROUNDS))
    assert "resuming" in (folder.logs / "learner.log").read_text()
    assert not pids_of_rank(0, folder.path)
    assert not pids_of_rank(1, folder.path)


def pids_of_rank(rank: int, run: Path) -> list[int]:
    marks = {f"{RANK}={rank}".encode(), f"{MARK}={run}".encode()}
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and marks <= set((entry / "environ").read_bytes().split(b"\0")):
                found.append(int(entry.name))
    return found
