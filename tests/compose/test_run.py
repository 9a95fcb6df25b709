"""Runs under compose on a real engine, from the committed files: to the end, scaled, hit, taken down and up again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from services.contracts import StatusSnapshot
from tests.support import scripted_run
from tests.support.compose_stack import ROOT, Stack
from tests.support.watching import alive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

READY_S = 240
JOINS_S = 30.0
"""Three generators must work this long after they were asked for."""
ROUND_S = 90
WORLD = "/sept/.cache/world"
ROUNDS = 120


def readable(folder: Path) -> Path:
    """The folder, once every user may read it: containers run as one that this host does not know."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def put(stack: Stack, folder: Path, where: str) -> None:
    """Copy the folder into a volume, as the learner's user."""
    stack.compose("run", "--rm", "--no-deps", "-v", f"{folder}:/in:ro", "--entrypoint", f"cp -r /in {where}", "learner")


def past(status: StatusSnapshot | None, rounds: int) -> Callable[[StatusSnapshot], bool]:
    """Whether a later status has gone on for so many rounds."""
    assert status is not None
    return lambda now: now.round >= min(ROUNDS, status.round + rounds)


@pytest.fixture
def world(tmp_path: Path, stack_of: Callable[[str, Path], Stack]) -> Stack:
    """A stack whose volume holds the small world, with a learner of two ranks."""
    folder = tmp_path / "world"
    folder.mkdir()
    config = scripted_run.write(
        folder, seen_at=WORLD, run="/sept/runs/world", rounds=ROUNDS, response_tokens=96, in_flight=4, ranks=2
    )
    stack = stack_of("sept-world", config)
    put(stack, readable(folder), WORLD)
    return stack


def test_a_run_survives_scaling_kills_and_being_taken_down(world: Stack, tmp_path: Path) -> None:
    world.compose("up", "-d", "--scale", "generator=1")
    world.until("first round", lambda status: status.round >= 1, READY_S)
    (learner,) = world.containers("learner")
    assert world.docker("top", learner, "-o", "pid,args").count(" -m sept learner") == 2  # started by the first process
    for service in ("services", "learner", "generator"):
        (container,) = world.containers(service)
        assert world.docker("exec", container, "id", "-u") == "10001"
        assert not world.docker("exec", container, "sh", "-c", "touch /usr/x 2>/dev/null && echo written || true")

    world.compose("up", "-d", "--scale", "generator=3")
    joined_s = world.until("3 generators", lambda status: alive(status) == 3, JOINS_S)
    say(f"3 generators work {joined_s:.1f} s after the command")

    for service in ("generator", "learner", "redis"):
        before = world.status()
        world.docker("kill", world.containers(service)[-1])
        world.compose("up", "-d", "--scale", "generator=3")
        back_s = world.until(f"rounds after the end of {service}", past(before, 2), ROUND_S)
        say(f"docker kill {service}, up: two rounds on after {back_s:.1f} s")

    leaving = world.containers("generator")
    world.compose("up", "-d", "--scale", "generator=1")
    assert len(world.containers("generator")) == 1 and len(leaving) == 3
    left_s = world.until("1 generator", lambda status: len(status.generators) == 1, ROUND_S)
    say(f"1 generator is left, none is lost, {left_s:.1f} s after scaling down returned")

    before = world.status()
    world.compose("down")
    world.compose("up", "-d", "--scale", "generator=2")
    world.until("rounds after down and up", past(before, 2), READY_S)
    world.until("end of the run", lambda status: status.state == "finished", 600)
    say(f"down and up at round {before.round if before else 0}; finished {ROUNDS} rounds")

    (services,) = world.containers("services")
    world.docker("cp", f"{services}:/sept/runs/world", str(tmp_path / "run"))
    found = scripted_run.rounds_of(tmp_path / "run")
    folder = tmp_path / "world"
    assert found == scripted_run.expected_rounds(folder / "run.toml", folder / "model", folder / "prompts.jsonl")
    last = world.status()
    assert last is not None and last.dead_letters == 0
    (learner,) = world.containers("learner")
    assert world.state(learner)["ExitCode"] == 0


def test_the_demo_runs_to_its_end_with_the_real_engine(tmp_path: Path, stack_of: Callable[[str, Path], Stack]) -> None:
    config = tmp_path / "demo.toml"
    text = (ROOT / "deploy/config/demo.toml").read_text()
    assert "rounds = 120 " in text.replace("\n", " ")
    config.write_text(text.replace("rounds = 120", "rounds = 8"))
    config.chmod(0o644)
    stack = stack_of("sept-demo", config)
    if (ROOT / ".cache/demo/model").is_dir():  # the pre-training of `make demo` takes minutes; then only find it there
        shutil.copytree(ROOT / ".cache/demo/model", tmp_path / "demo/model")
        put(stack, readable(tmp_path / "demo"), "/sept/.cache/demo")
    stack.compose("run", "--rm", "demo", timeout_s=900)
    stack.compose("up", "-d", "--scale", "generator=2")
    ended_s = stack.until("end of the run", lambda status: status.state == "finished", 600)
    status = stack.status()
    assert status is not None and status.last_round is not None and status.weight_version == 8
    say(f"the demo's 8 rounds took {ended_s:.0f} s from `up`, loss {status.last_round.loss:.3f}")


def say(text: str) -> None:
    """For the reader of `make test-compose`, which does not capture."""
    os.write(1, f"\n    {text}".encode())
