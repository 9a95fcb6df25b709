"""Whole processes, killed: a few kills of the chaos benchmark, which takes minutes for all of them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from benchmarks import disasters
from benchmarks.chaos import chaos, passed
from benchmarks.runs import PROMPTS_PER_ROUND, SUPERVISOR, Run, chaos_settings, until, write_inputs

PARTS = ("redis", "generator-0", SUPERVISOR)  # with the supervisor everything dies, the learner too


@pytest.mark.timeout(600)
async def test_a_run_whose_parts_are_killed_becomes_the_run_it_would_have_been(tmp_path: Path) -> None:
    said: list[str] = []
    result = await chaos(tmp_path, kills=len(PARTS), seed=3, parts=PARTS, rounds=24, say=said.append)
    assert passed(result), f"{result}\n" + "\n".join(said)
    assert result["bit_identical"] is True
    assert set(result["killed"]) == set(PARTS)
    log = (tmp_path / "disturbed" / "logs" / "learner.log").read_text()
    assert "resuming" in log or "rollouts_found" in log, "it says from where it goes on"


async def test_a_learner_that_was_told_to_stop_by_itself_is_started_again(tmp_path: Path) -> None:
    """As by an eviction: what it leaves is not the end of the run."""
    write_inputs(tmp_path, seed=0, prompts=5 * PROMPTS_PER_ROUND)
    run = Run(tmp_path / "run", chaos_settings(tmp_path, engine="scripted", rounds=8))

    async def evict() -> None:
        async def trains() -> bool:
            return run.rounds_done() >= 1

        await until(trains, "the first round")
        learner = run.pid_of("learner")
        assert learner is not None
        os.kill(learner, signal.SIGTERM)

    folder = await run.whole(evict)
    assert [line.round for line in folder.rounds()] == list(range(8))
    assert [event["ended"] for event in run.events(SUPERVISOR) if event["event"] == "part_died"] == ["exit code 143"]


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    """Where all kinds find their inputs; version -> digest of the undisturbed run."""
    folder = tmp_path_factory.mktemp("disasters")
    return folder, asyncio.run(disasters.undisturbed(folder))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", disasters.KINDS, ids=lambda kind: kind.name)
async def test_whatever_else_happens_to_a_run_it_becomes_the_run_it_would_have_been(
    peace: tuple[Path, dict[int, str]], kind: disasters.Kind
) -> None:
    if kind.name == "full-disk" and os.geteuid() != 0:
        pytest.skip("mounts a file system, which needs root")
    line = await disasters.inflict(kind, *peace)
    assert disasters.passed(line), line
