"""A learner of several processes is one part: it fails as one, and when one of them is killed all start again."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from deploy import exit_codes
from deploy.load_settings import load
from deploy.local import rank_launcher
from deploy.local.processes import MARK
from deploy.local.rank_launcher import Over, start_ranks
from deploy.local.run import run_local
from learner.parallel.launch_env import RANK
from services.run_folder import RunFolder
from services.streams.nodes import Ending, NodeCard
from tests.support import scripted_run

ROUNDS = 5
PATIENCE_S = 150.0
OWN = NodeCard(
    id="i", node=0, nodes=2, ranks=4, release="r", settings={}, host="h", pid=1, address="127.0.0.1"
)  # two ranks here, two on node 1


Ranks = Callable[..., list[subprocess.Popen[bytes]]]
LIVES = "exec sleep 60"


class Told:
    """A membership of a start that says what a test has it say."""

    def __init__(self, *endings: Ending | None, stop_requested: bool = False) -> None:
        self._endings = list(endings)
        self.stop_requested = stop_requested
        self.requested_stop = False

    def beat(self) -> Ending | None:
        return self._endings.pop(0) if len(self._endings) > 1 else self._endings[0]

    def request_stop(self) -> None:
        self.requested_stop = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_launcher, "BEAT_EVERY_S", 0.02)
    monkeypatch.setattr(rank_launcher, "EXPLAINED_S", 0.2)


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """Starts a process for each shell command; they are gone after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*commands: str) -> list[subprocess.Popen[bytes]]:
        new = [subprocess.Popen(["sh", "-c", command]) for command in commands]
        started.extend(new)
        return new

    yield start
    for process in started:
        process.kill()
        process.wait()


def over(children: list[subprocess.Popen[bytes]], told: Told, card: NodeCard = OWN) -> Over:
    return rank_launcher._Watch(children, told, card).until_over()  # type: ignore[arg-type]


def test_a_rank_that_fails_ends_the_start_on_this_node_with_its_code(ranks: Ranks) -> None:
    assert over(ranks(LIVES, "exit 3"), Told(None)) == Over(3, "rank 1 has ended with exit code 3")
    assert over(ranks(LIVES, "kill -9 $$"), Told(None)).code == 137


def test_a_rank_that_lost_another_one_is_explained_by_the_first_that_failed(ranks: Ranks) -> None:
    assert over(ranks("exit 5", "sleep 0.1; exit 7"), Told(None)) == Over(7, "rank 1 has ended with exit code 7")


def test_a_rank_that_lost_one_of_another_node_starts_again_with_it(ranks: Ranks) -> None:
    told = Told(None, None, Ending("node 1 ended: rank 3 has ended with exit code 137", 137))
    ended = over(ranks(LIVES, "exit 5"), told)
    assert (ended.again, ended.reason) == (True, "node 1 ended: rank 3 has ended with exit code 137")


def test_ranks_that_lost_each_other_though_none_has_ended_do_not_start_again_for_ever(ranks: Ranks) -> None:
    ended = over(ranks(LIVES, "exit 5"), Told(None))
    assert (ended.again, ended.code) == (False, exit_codes.LOST_RANK)
    assert "see the network" in ended.reason


@pytest.mark.parametrize("code", [exit_codes.BAD_CONFIG, exit_codes.BAD_INPUT])
def test_what_would_fail_again_on_another_node_ends_this_one_too(ranks: Ranks, code: int) -> None:
    assert over(ranks(LIVES, LIVES), Told(Ending("node 1 ended: no such model", code))) == Over(
        code, "node 1 ended: no such model"
    )


def test_a_lost_node_ends_the_start_and_the_others_wait_for_it(ranks: Ranks) -> None:
    assert over(ranks(LIVES, LIVES), Told(None, Ending("node 1 is silent: lost", None))) == Over(
        exit_codes.LOST_RANK, "node 1 is silent: lost", again=True
    )


@pytest.mark.parametrize("code", [exit_codes.OK, exit_codes.STOPPED])
def test_a_further_node_ends_as_the_learner_did(ranks: Ranks, code: int) -> None:
    other = OWN.model_copy(update={"node": 1})
    assert over(ranks("exit 0", "sleep 0.1"), Told(None, Ending("node 0 ended", code)), other).code == code


def test_ranks_that_do_not_follow_an_orderly_end_are_not_waited_for_in_vain(ranks: Ranks) -> None:
    other = OWN.model_copy(update={"node": 1})
    ended = over(ranks(LIVES, LIVES), Told(Ending("node 0 ended: stopped", exit_codes.STOPPED)), other)
    assert ended == Over(exit_codes.STOPPED, "node 0 ended: stopped")


def test_a_stop_reaches_rank_0_from_any_node(ranks: Ranks) -> None:
    stops = "trap 'exit 143' TERM; while :; do sleep 0.01; done"
    assert over(ranks(stops, LIVES), Told(None, stop_requested=True)).code == exit_codes.STOPPED
    asked = Told(None, None, Ending("node 0 ended: stopped", exit_codes.STOPPED))
    other = OWN.model_copy(update={"node": 1})
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert over(ranks(LIVES, LIVES), asked, other).code == exit_codes.STOPPED
    assert asked.requested_stop


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
