"""The supervisor on tiny real processes: restarts, gives up, scales, drains in order, leaves nobody behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from deploy.journal import Journal, write_flight_record
from deploy.processes import MARK, Process, Spec, last_words, sweep
from deploy.supervisor import Plan, RestartPolicy, Supervisor
from services.errors import UnavailableError
from services.runfolder import RunFolder

SERVE = """
import signal, sys
print("up", flush=True)
signal.sigwait({signal.SIGTERM})
print("drained", flush=True)
"""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pause()
"""
BLOCK_SIGTERM = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
"""So that a SIGTERM between "up" and sigwait is not lost."""

HASTY = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.02, max_failures=3, max_kills=3)


class Wishes:
    """Desired generators as a test says them."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[int] = asyncio.Queue()

    async def follow(self) -> AsyncIterator[int]:
        while True:
            yield await self.queue.get()


class Watcher:
    """A journal that tests can wait on."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self._more = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self.journal = Journal(folder / "supervisor.log", self._hear)

    def _hear(self, text: str) -> None:
        self.said.append(text.strip())
        task = asyncio.get_running_loop().create_task(self._wake())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wake(self) -> None:
        async with self._more:
            self._more.notify_all()

    async def until(self, condition: Callable[[list[str]], bool]) -> None:
        async with asyncio.timeout(20), self._more:
            await self._more.wait_for(lambda: condition(self.said))

    def pid(self, part: str) -> int:
        line = [text for text in self.said if text.startswith(f"part_started part={part} ")][-1]
        return int(line.rpartition("=")[2])


def script(folder: Path, name: str, code: str) -> Spec:
    return Spec(name, (sys.executable, "-c", BLOCK_SIGTERM + code), folder / f"{name}.log", dict(os.environ))


def plan(folder: Path, learner: str = SERVE, *, generator: str = SERVE, services: str = SERVE, count: int = 1) -> Plan:
    return Plan(
        redis=script(folder, "redis", SERVE),
        services=script(folder, "services", services),
        learner=script(folder, "learner", learner),
        generator=lambda index: script(folder, f"generator-{index}", generator),
        generators=count,
    )


def supervisor(folder: Path, parts: Plan, watcher: Watcher, wishes: Wishes | None = None, **more: float) -> Supervisor:
    return Supervisor(
        parts,
        run=folder,
        desired=wishes or Wishes(),
        journal=watcher.journal,
        policy=HASTY,
        **{"drain_s": 20.0, **more},
    )


def started(*parts: str) -> Callable[[list[str]], bool]:
    return lambda said: all(any(text.startswith(f"part_started part={part} ") for text in said) for part in parts)


async def up(*logs: Path) -> None:
    """Wait until each of the processes has said that it is up."""
    async with asyncio.timeout(20):
        while not all(log.exists() and "up" in log.read_text() for log in logs):
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_run_is_over_when_its_learner_has_finished(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    assert await supervisor(tmp_path, plan(tmp_path, "pass"), watcher).run() is None
    ended = [text.split()[1] for text in watcher.said if text.startswith("part_ended")]
    assert set(ended[:2]) == {"part=learner", "part=generator-0"}
    assert ended[2:] == ["part=services", "part=redis"]


async def test_a_part_that_is_killed_starts_again(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    runner = supervisor(tmp_path, plan(tmp_path), watcher)
    run = asyncio.create_task(runner.run())
    await watcher.until(started("generator-0"))
    first = watcher.pid("generator-0")
    os.kill(first, signal.SIGKILL)
    await watcher.until(lambda said: sum("part_started part=generator-0" in text for text in said) == 2)
    assert watcher.pid("generator-0") != first
    runner.request_stop(signal.SIGTERM)
    assert await run == signal.SIGTERM
    assert any("ended=killed by SIGKILL" in text for text in watcher.said)


async def test_a_part_that_keeps_failing_ends_the_run_with_its_last_words(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    failing = plan(tmp_path, services="print('no space left on device'); raise SystemExit(1)")
    with pytest.raises(UnavailableError, match=r"services died 3 times in a row.*exit code 1") as caught:
        await supervisor(tmp_path, failing, watcher).run()
    assert "no space left on device" in caught.value.message
    assert not any(is_alive(watcher.pid(part)) for part in ("redis", "services", "learner", "generator-0"))


async def test_a_bad_config_is_not_tried_twice(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    with pytest.raises(UnavailableError, match=r"learner died after .* exit code 2"):
        await supervisor(tmp_path, plan(tmp_path, "raise SystemExit(2)"), watcher).run()
    assert sum("part_started part=learner" in text for text in watcher.said) == 1


async def test_generators_are_scaled_up_and_down(tmp_path: Path) -> None:
    watcher, wishes = Watcher(tmp_path), Wishes()
    runner = supervisor(tmp_path, plan(tmp_path), watcher, wishes)
    run = asyncio.create_task(runner.run())
    await wishes.queue.put(3)
    await watcher.until(started("generator-0", "generator-1", "generator-2"))
    await up(*(tmp_path / f"generator-{index}.log" for index in range(3)))
    await wishes.queue.put(1)
    await watcher.until(lambda said: sum("part_ended part=generator" in text for text in said) == 2)
    assert is_alive(watcher.pid("generator-0"))
    assert "drained" in (tmp_path / "generator-2.log").read_text()
    runner.request_stop(signal.SIGINT)
    assert await run == signal.SIGINT


async def test_the_first_stop_drains_every_part(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    runner = supervisor(tmp_path, plan(tmp_path), watcher)
    run = asyncio.create_task(runner.run())
    logs = [tmp_path / f"{part}.log" for part in ("redis", "services", "learner", "generator-0")]
    await up(*logs)
    runner.request_stop(signal.SIGTERM)
    await run
    assert all("drained" in log.read_text() for log in logs)


async def test_a_second_stop_ends_everything_now(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    runner = supervisor(tmp_path, plan(tmp_path, STUBBORN), watcher)
    run = asyncio.create_task(runner.run())
    await up(tmp_path / "learner.log")
    runner.request_stop(signal.SIGINT)
    runner.request_stop(signal.SIGINT)
    async with asyncio.timeout(10):
        await run
    assert "part_killed part=learner" in watcher.said
    assert not is_alive(watcher.pid("learner"))


async def test_helpers_of_a_part_do_not_outlive_it(tmp_path: Path) -> None:
    helper = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]).pid, flush=True)"
    process = await Process.start(script(tmp_path, "part", helper), run=tmp_path)
    async with asyncio.timeout(20):
        assert await process.wait() == 0
        pid = int((tmp_path / "part.log").read_text().split()[0])
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            await asyncio.sleep(0.01)  # killed, not yet gone


async def test_what_a_killed_supervisor_left_behind_is_swept(tmp_path: Path) -> None:
    spec = script(tmp_path, "left", STUBBORN)
    child = await asyncio.create_subprocess_exec(*spec.argv, env={**os.environ, MARK: str(tmp_path)})
    while b"STUB" not in Path(f"/proc/{child.pid}/environ").read_bytes() + b"STUB":
        await asyncio.sleep(0.01)
    other = sweep(tmp_path / "another-run")
    assert (other, sweep(tmp_path)) == ([], [child.pid])
    assert await child.wait() == -signal.SIGKILL


def test_delays_between_restarts_grow_to_a_limit() -> None:
    policy = RestartPolicy(first_delay_s=0.5, longest_delay_s=3.0)
    assert [policy.delay_s(deaths) for deaths in (1, 2, 3, 4, 5000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_last_words_are_the_end_of_a_log_of_any_size(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    assert last_words(log) == []
    log.write_text("\n".join(f"line {number}" for number in range(100_000)))
    assert last_words(log, 2) == ["line 99998", "line 99999"]


def test_a_flight_record_holds_events_and_the_ends_of_all_logs(tmp_path: Path) -> None:
    import json

    folder = RunFolder(tmp_path).create()
    (folder.logs / "learner.log").write_text("goodbye\n")
    journal = Journal(folder.logs / "supervisor.log", lambda text: None)
    journal.note("part_died", part="learner")
    record = json.loads(write_flight_record(folder, journal, "why", [{"kind": "published"}]).read_text())
    assert record["reason"] == "why"
    assert record["supervisor"][0]["part"] == "learner"
    assert record["logs"]["learner"] == ["goodbye"]
    assert record["parts"] == [{"kind": "published"}]
