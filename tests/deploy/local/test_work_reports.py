"""Whether the processes of a run have done work, and which of them are silent."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import redis

from deploy.local import work_reports
from deploy.local.work_reports import RunProgress, WorkReports
from services.contracts import Heartbeat, Part
from services.run_folder import EvaluationFolder, RunFolder
from services.streams.connection import Keys
from services.streams.heartbeats import Heartbeats


def test_progress_is_a_newer_checkpoint_since_the_last_question(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    folder.checkpoint_of(3).path.mkdir()
    progress = RunProgress(folder)
    assert not progress.has_grown("learner")
    folder.checkpoint_of(4).path.mkdir()
    assert progress.has_grown("learner")
    assert not progress.has_grown("learner")
    assert progress.has_grown("redis"), "each part is asked about its own time"


def test_progress_of_an_evaluation_is_an_answer_more(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    progress = RunProgress(folder)
    EvaluationFolder(folder.path).generations.write_text("{}\n")
    assert progress.has_grown("evaluator")
    assert not progress.has_grown("evaluator")


async def test_a_generator_has_worked_when_a_heartbeat_of_its_process_counted_tokens(
    tmp_path: Path, redis_url: str
) -> None:
    folder = RunFolder(tmp_path).create()
    folder.checkpoint_of(1).path.mkdir()
    reports = WorkReports(folder, redis_url)
    with redis.Redis.from_url(redis_url) as client:
        for pid, tokens_per_s in ((11, 3.0), (12, 0.0)):
            beat = Heartbeat(
                part=Part.GENERATOR,
                part_id=f"generator-{pid}",
                state="generating",
                shares={"generating": 1.0},
                host="h",
                pid=pid,
                device="cpu",
                tokens_per_s=tokens_per_s,
            )
            Heartbeats(client, Keys(folder.run_id)).send(beat)
    following = asyncio.create_task(reports.follow())
    async with asyncio.timeout(20):
        while not reports.has_worked("generator-11", 11):
            await asyncio.wait([following], timeout=0.01)
    following.cancel()
    await asyncio.wait([following])
    assert not reports.has_worked("generator-12", 12)
    assert not reports.has_worked("generator-11", 13), "the process that follows has not"


async def test_without_redis_nobody_is_known_to_have_worked(tmp_path: Path) -> None:
    reports = WorkReports(RunFolder(tmp_path).create(), "redis://127.0.0.1:1")
    following = asyncio.create_task(reports.follow())
    await asyncio.sleep(0)
    assert not reports.has_worked("generator-0", 1)
    following.cancel()
    await asyncio.wait([following])


async def test_a_part_is_silent_until_it_or_a_rank_of_it_sends_a_heartbeat(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_reports, "READ_EVERY_S", 0.05)
    monkeypatch.setattr(work_reports, "LOST_AFTER_S", 3600.0)
    folder = RunFolder(tmp_path).create()
    reports = WorkReports(folder, redis_url)
    launcher = await asyncio.create_subprocess_exec(
        "sh", "-c", "sleep 1000 & echo $!; wait", stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert launcher.stdout is not None
    rank = int(await launcher.stdout.readline())

    async def until_silence(part: str, pid: int, *, ends: bool) -> None:
        async with asyncio.timeout(60):
            while (reports.silent_s(part, pid) == 0) != ends:
                await asyncio.wait([following], timeout=0.01)

    def send(client: redis.Redis, part: Part, pid: int) -> None:
        beat = Heartbeat(part=part, part_id=part.value, state="s", shares={"s": 1.0}, host="h", pid=pid, device="cpu")
        Heartbeats(client, Keys(folder.run_id)).send(beat)

    following = asyncio.create_task(reports.follow())
    try:
        with redis.Redis.from_url(redis_url) as client:
            send(client, Part.GENERATOR, 2**70)  # which no process has
            send(client, Part.GENERATOR, rank)  # nobody may send the learner's but the learner
            await until_silence("learner", launcher.pid, ends=False)
            send(client, Part.LEARNER, rank)
            await until_silence("learner", launcher.pid, ends=True)
            await until_silence("generator-0", 4_000_001, ends=False)
            send(client, Part.GENERATOR, 4_000_001)
            await until_silence("generator-0", 4_000_001, ends=True)
        assert reports.silent_s("redis", 4_000_002) == reports.silent_s("services", 4_000_003) == 0
    finally:
        os.killpg(launcher.pid, signal.SIGKILL)
        await launcher.wait()
        following.cancel()
        await asyncio.wait([following])


async def test_nobody_is_silent_while_redis_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_reports, "READ_EVERY_S", 0.01)
    monkeypatch.setattr(work_reports, "ANSWERS_WITHIN_S", 0.01)
    reports = WorkReports(RunFolder(tmp_path).create(), "redis://127.0.0.1:1")
    assert reports.silent_s("learner", 7) == 0
    following = asyncio.create_task(reports.follow())
    await asyncio.wait([following], timeout=0.5)
    assert reports.silent_s("learner", 7) == 0
    following.cancel()
    await asyncio.wait([following])


@pytest.mark.parametrize(
    ("state", "loaded"), [("starting", False), ("publishing", False), ("failed", False), ("waiting_for_rollouts", True)]
)
async def test_a_learner_has_loaded_when_it_works_with_its_weights(
    tmp_path: Path, redis_url: str, state: str, loaded: bool
) -> None:
    folder = RunFolder(tmp_path).create()
    reports = WorkReports(folder, redis_url)
    following = asyncio.create_task(reports.follow())
    with redis.Redis.from_url(redis_url) as client:
        beat = Heartbeat(
            part=Part.LEARNER,
            part_id="learner",
            state=state,
            shares={state: 1.0},
            host="h",
            pid=7,
            device="cuda",
        )
        Heartbeats(client, Keys(folder.run_id)).send(beat)
        waiting = asyncio.create_task(reports.learner_has_loaded())
        await asyncio.wait([waiting], timeout=20 if loaded else 0.5)
    assert waiting.done() == loaded
    for task in (following, waiting):
        task.cancel()
    await asyncio.wait([following, waiting])
