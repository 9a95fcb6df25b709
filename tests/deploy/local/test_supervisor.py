"""The supervisor on tiny real processes: scales, drains in order, leaves nobody behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local.supervisor import Supervisor
from services.errors import ModelError, UnavailableError
from tests.support.supervised_parts import HASTY, STUBBORN, Asked, Watcher, is_alive, watching


@pytest.fixture
async def watcher(tmp_path: Path) -> AsyncIterator[Watcher]:
    async with watching(tmp_path) as watcher:
        yield watcher


async def test_a_run_is_over_when_its_learner_has_finished(watcher: Watcher) -> None:
    assert await watcher.supervisor(watcher.plan("pass")).run() is None
    ended = [text.split()[1] for text in watcher.said if text.startswith("part_ended")]
    assert set(ended[:2]) == {"part=learner", "part=generator-0"}
    assert ended[2:] == ["part=services", "part=redis"]


async def test_a_failed_run_is_looked_at_before_it_is_drained(watcher: Watcher) -> None:
    seen: list[int] = []

    async def before_drain_of_failed() -> None:
        seen.append(watcher.ends("redis"))

    supervisor = Supervisor(
        watcher.plan("raise SystemExit(2)"),
        run=watcher.folder,
        generators_target=Asked(),
        log=watcher.log,
        before_drain_of_failed=before_drain_of_failed,
    )
    with pytest.raises(UnavailableError):
        await supervisor.run()
    assert (seen, watcher.ends("redis")) == ([0], 1)


async def test_a_condition_that_does_not_hold_ends_the_run_with_its_error(watcher: Watcher) -> None:
    async def holds() -> bool:
        return True

    async def does_not_hold() -> bool:
        await watcher.until_up("learner", "generator-0")
        raise ModelError("no engine serves the model")

    supervisor = watcher.supervisor(watcher.plan())
    supervisor.require(holds())
    supervisor.require(does_not_hold())
    with pytest.raises(ModelError, match="no engine serves"):
        await supervisor.run()
    assert "run_failed error=no engine serves the model" in " ".join(watcher.said).replace("'", "").replace('"', "")


async def test_generators_wait_for_what_they_share_a_gpu_with(watcher: Watcher) -> None:
    loaded = asyncio.Event()

    async def learner_has_loaded() -> None:
        await loaded.wait()

    supervisor = Supervisor(
        watcher.plan(),
        run=watcher.folder,
        generators_target=Asked(),
        log=watcher.log,
        generators_may_start=learner_has_loaded,
    )
    run = asyncio.create_task(supervisor.run())
    await watcher.until_up("learner", "services", "redis")
    assert watcher.starts("generator-0") == 0
    loaded.set()
    await watcher.until_up("generator-0")
    supervisor.request_stop(signal.SIGTERM)
    await run


async def test_generators_are_scaled_up_and_down(watcher: Watcher) -> None:
    asked = Asked()
    supervisor = watcher.supervisor(watcher.plan(), asked)
    run = asyncio.create_task(supervisor.run())
    await asked.queue.put(3)
    await watcher.until_up("generator-0", "generator-1", "generator-2")
    await asked.queue.put(1)
    await watcher.until(lambda: watcher.ends("generator-1") == watcher.ends("generator-2") == 1)
    assert is_alive(watcher.pid("generator-0"))
    assert "drained" in (watcher.folder / "generator-2.log").read_text()
    supervisor.request_stop(signal.SIGINT)
    assert await run == signal.SIGINT


async def test_a_learner_has_the_policy_that_is_its_own(watcher: Watcher) -> None:
    """Whatever the other parts may do."""
    supervisor = Supervisor(
        watcher.plan("raise SystemExit(1)"),
        run=watcher.folder,
        generators_target=Asked(),
        log=watcher.log,
        policy=replace(HASTY, max_failures=9),
        learner_policy=replace(HASTY, max_failures=2),
    )
    with pytest.raises(UnavailableError, match="learner died 2 times in a row"):
        await supervisor.run()
    assert watcher.starts("learner") == 2


async def test_each_part_is_asked_about_by_its_own_name_and_process(watcher: Watcher) -> None:
    asked: list[tuple[str, int]] = []

    def has_worked(part: str, pid: int) -> bool:
        asked.append((part, pid))
        return False

    supervisor = Supervisor(
        watcher.plan(services="raise SystemExit(1)"),
        run=watcher.folder,
        generators_target=Asked(),
        log=watcher.log,
        policy=replace(HASTY, max_failures=1),
        has_worked=has_worked,
    )
    with pytest.raises(UnavailableError, match="services died after"):
        await supervisor.run()
    assert asked == [("services", watcher.pid("services"))]


async def test_a_run_fails_with_its_first_failure(watcher: Watcher) -> None:
    """What fails because of it, while the run is looked at and drained, hides nothing."""

    async def fails(text: str) -> None:
        raise ModelError(text)

    supervisor = watcher.supervisor(watcher.plan())
    supervisor.require(fails("the cause"))
    supervisor.require(fails("a consequence"))
    with pytest.raises(ModelError, match="the cause"):
        await supervisor.run()
    assert sum(text.startswith("run_failed") for text in watcher.said) == 1


async def test_the_first_stop_drains_every_part(watcher: Watcher) -> None:
    supervisor = watcher.supervisor(watcher.plan())
    run = asyncio.create_task(supervisor.run())
    parts = ("redis", "services", "learner", "generator-0")
    await watcher.until_up(*parts)
    supervisor.request_stop(signal.SIGTERM)
    await run
    assert all("drained" in (watcher.folder / f"{part}.log").read_text() for part in parts)


async def test_the_same_signal_heard_twice_is_one_request(watcher: Watcher) -> None:
    supervisor = watcher.supervisor(watcher.plan())
    run = asyncio.create_task(supervisor.run())
    await watcher.until_up("learner", "redis", "services", "generator-0")
    supervisor.request_stop(signal.SIGTERM)
    supervisor.request_stop(signal.SIGTERM)
    await run
    assert "drained" in (watcher.folder / "learner.log").read_text()


async def test_a_stop_that_is_repeated_again_and_again_is_at_last_a_second_one(watcher: Watcher) -> None:
    """What counts as the same request is measured from the first, not from its last echo."""
    supervisor = Supervisor(
        watcher.plan(STUBBORN), run=watcher.folder, generators_target=Asked(), log=watcher.log, same_stop_s=0.2
    )
    run = asyncio.create_task(supervisor.run())
    await watcher.until_up("learner")
    for _ in range(3):
        supervisor.request_stop(signal.SIGINT)
        await asyncio.sleep(0.15)
    async with asyncio.timeout(10):
        await run
    assert any(text.startswith("stopping_now") for text in watcher.said)


async def test_a_second_stop_ends_everything_now(watcher: Watcher) -> None:
    supervisor = Supervisor(
        watcher.plan(STUBBORN), run=watcher.folder, generators_target=Asked(), log=watcher.log, same_stop_s=0.0
    )
    run = asyncio.create_task(supervisor.run())
    await watcher.until_up("learner")
    supervisor.request_stop(signal.SIGINT)
    supervisor.request_stop(signal.SIGINT)
    async with asyncio.timeout(10):
        await run
    assert "part_killed part=learner" in watcher.said
    assert not is_alive(watcher.pid("learner"))
