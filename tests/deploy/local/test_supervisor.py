"""The supervisor on tiny real processes: restarts, gives up, scales, drains in order, leaves nobody behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from deploy.local.event_log import Journal, write_flight_record
from deploy.local.processes import MARK, Process, Spec, last_words, sweep
from deploy.local.supervisor import Plan, RestartPolicy, Supervisor
from services.errors import UnavailableError
from services.run_folder import RunFolder

CALL = """
import signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
line = socket.socket(socket.AF_UNIX)
line.connect(%r)
line.sendall(b"%s\\n")
"""
"""How a child tells the test that it is up; the open line tells when it, and whoever inherited it, is gone."""

SERVE = """
signal.sigwait({signal.SIGTERM})
print("drained", flush=True)
"""
STUBBORN = """
while True:
    signal.pause()
"""
WITH_HELPER = """
import os
if os.fork() == 0:
    while True:
        signal.pause()
"""

HASTY = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.02, max_failures=3, max_kills=3)


class Wishes:
    """Desired generators as a test says them."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[int] = asyncio.Queue()

    async def follow(self) -> AsyncIterator[int]:
        while True:
            yield await self.queue.get()


class Watcher:
    """Hears the journal and the children, and lets a test wait for what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.up: list[str] = []
        self.gone: list[str] = []
        self.journal = Journal(folder / "supervisor.log", self._note)
        self.address = str(folder / "line")
        self._changed = asyncio.Event()

    def _note(self, text: str) -> None:
        self.said.append(text.strip())
        self._changed.set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = (await reader.readline()).decode().strip()
        self.up.append(name)
        self._changed.set()
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        self.gone.append(name)
        self._changed.set()
        writer.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_up(self, *parts: str) -> None:
        await self.until(lambda: set(parts) <= set(self.up))

    def starts(self, part: str) -> int:
        return sum(text.startswith(f"part_started part={part} ") for text in self.said)

    def ends(self, part: str) -> int:
        return sum(text.startswith(f"part_ended part={part} ") for text in self.said)

    def pid(self, part: str) -> int:
        line = [text for text in self.said if text.startswith(f"part_started part={part} ")][-1]
        return int(line.rpartition("=")[2])

    def script(self, name: str, code: str) -> Spec:
        source = CALL % (self.address, name) + code
        return Spec(name, (sys.executable, "-c", source), self.folder / f"{name}.log", dict(os.environ))

    def plan(self, learner: str = SERVE, *, services: str = SERVE) -> Plan:
        return Plan(
            redis=self.script("redis", SERVE),
            services=self.script("services", services),
            learner=self.script("learner", learner),
            generator=lambda index: self.script(f"generator-{index}", SERVE),
            generators=1,
        )

    def supervisor(self, plan: Plan, wishes: Wishes | None = None) -> Supervisor:
        return Supervisor(plan, run=self.folder, desired=wishes or Wishes(), journal=self.journal, policy=HASTY)


@pytest.fixture
async def watcher(tmp_path: Path) -> AsyncIterator[Watcher]:
    watcher = Watcher(tmp_path)
    server = await asyncio.start_unix_server(watcher.answer, watcher.address)
    yield watcher
    server.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_run_is_over_when_its_learner_has_finished(watcher: Watcher) -> None:
    assert await watcher.supervisor(watcher.plan("pass")).run() is None
    ended = [text.split()[1] for text in watcher.said if text.startswith("part_ended")]
    assert set(ended[:2]) == {"part=learner", "part=generator-0"}
    assert ended[2:] == ["part=services", "part=redis"]


async def test_a_part_that_is_killed_starts_again(watcher: Watcher) -> None:
    supervisor = watcher.supervisor(watcher.plan())
    run = asyncio.create_task(supervisor.run())
    await watcher.until_up("generator-0")
    first = watcher.pid("generator-0")
    os.kill(first, signal.SIGKILL)
    await watcher.until(lambda: watcher.starts("generator-0") == 2)
    assert watcher.pid("generator-0") != first
    supervisor.request_stop(signal.SIGTERM)
    assert await run == signal.SIGTERM
    assert any("ended=killed by SIGKILL" in text for text in watcher.said)


async def test_a_part_that_keeps_failing_ends_the_run_with_its_last_words(watcher: Watcher) -> None:
    failing = watcher.plan(services="print('no space left on device'); raise SystemExit(1)")
    with pytest.raises(UnavailableError, match=r"services died 3 times in a row.*exit code 1") as caught:
        await watcher.supervisor(failing).run()
    assert "no space left on device" in caught.value.message
    assert not any(is_alive(watcher.pid(part)) for part in ("redis", "services", "learner", "generator-0"))


async def test_a_bad_config_is_not_tried_twice(watcher: Watcher) -> None:
    with pytest.raises(UnavailableError, match=r"learner died after .* s \(exit code 2\)"):
        await watcher.supervisor(watcher.plan("raise SystemExit(2)")).run()
    assert watcher.starts("learner") == 1


async def test_a_failed_run_is_looked_at_before_it_is_drained(watcher: Watcher) -> None:
    seen: list[int] = []

    async def last_look() -> None:
        seen.append(watcher.ends("redis"))

    supervisor = Supervisor(
        watcher.plan("raise SystemExit(2)"),
        run=watcher.folder,
        desired=Wishes(),
        journal=watcher.journal,
        last_look=last_look,
    )
    with pytest.raises(UnavailableError):
        await supervisor.run()
    assert (seen, watcher.ends("redis")) == ([0], 1)


async def test_generators_are_scaled_up_and_down(watcher: Watcher) -> None:
    wishes = Wishes()
    supervisor = watcher.supervisor(watcher.plan(), wishes)
    run = asyncio.create_task(supervisor.run())
    await wishes.queue.put(3)
    await watcher.until_up("generator-0", "generator-1", "generator-2")
    await wishes.queue.put(1)
    await watcher.until(lambda: watcher.ends("generator-1") == watcher.ends("generator-2") == 1)
    assert is_alive(watcher.pid("generator-0"))
    assert "drained" in (watcher.folder / "generator-2.log").read_text()
    supervisor.request_stop(signal.SIGINT)
    assert await run == signal.SIGINT


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


async def test_a_second_stop_ends_everything_now(watcher: Watcher) -> None:
    supervisor = Supervisor(
        watcher.plan(STUBBORN), run=watcher.folder, desired=Wishes(), journal=watcher.journal, same_stop_s=0.0
    )
    run = asyncio.create_task(supervisor.run())
    await watcher.until_up("learner")
    supervisor.request_stop(signal.SIGINT)
    supervisor.request_stop(signal.SIGINT)
    async with asyncio.timeout(10):
        await run
    assert "part_killed part=learner" in watcher.said
    assert not is_alive(watcher.pid("learner"))


async def test_a_part_that_does_not_drain_is_killed(watcher: Watcher) -> None:
    supervisor = Supervisor(
        watcher.plan(STUBBORN), run=watcher.folder, desired=Wishes(), journal=watcher.journal, drain_s=0.0, grace_s=0.1
    )
    run = asyncio.create_task(supervisor.run())
    await watcher.until_up("learner")
    supervisor.request_stop(signal.SIGINT)
    await run
    assert "part_killed part=learner" in watcher.said


async def test_helpers_of_a_part_do_not_outlive_it(watcher: Watcher) -> None:
    process = await Process.start(watcher.script("part", WITH_HELPER), run=watcher.folder)
    assert await process.wait() == 0
    await watcher.until(lambda: watcher.gone == ["part"])  # the helper held the line open


async def test_what_a_killed_supervisor_left_behind_is_swept(watcher: Watcher, tmp_path: Path) -> None:
    spec = watcher.script("left", STUBBORN)
    child = await asyncio.create_subprocess_exec(*spec.argv, env={**os.environ, MARK: str(tmp_path)})
    await watcher.until_up("left")
    assert sweep(tmp_path / "another-run") == []
    assert sweep(tmp_path) == [child.pid]
    assert await child.wait() == -signal.SIGKILL


async def test_parts_are_told_to_drain_when_the_supervisor_dies(watcher: Watcher) -> None:
    """The supervisor is a child of this test, killed the hard way; its part drains by itself."""
    spec = watcher.script("orphan", SERVE)
    source = (
        "import asyncio, os\nfrom pathlib import Path\nfrom deploy.local.processes import Process, Spec\n"
        f"spec = Spec('orphan', {spec.argv!r}, Path({str(spec.log)!r}), dict(os.environ))\n"
        f"async def main():\n    await (await Process.start(spec, run=Path({str(watcher.folder)!r}))).wait()\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", source)
    await watcher.until_up("orphan")
    child.kill()
    await child.wait()
    await watcher.until(lambda: watcher.gone == ["orphan"])
    assert "drained" in spec.log.read_text()


def test_delays_between_restarts_grow_to_a_limit() -> None:
    policy = RestartPolicy(first_delay_s=0.5, longest_delay_s=3.0)
    assert [policy.delay_s(deaths) for deaths in (1, 2, 3, 4, 5000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_last_words_are_the_end_of_a_log_of_any_size(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    assert last_words(log) == []
    log.write_text("\n".join(f"line {number}" for number in range(100_000)))
    assert last_words(log, 2) == ["line 99998", "line 99999"]


def test_a_flight_record_holds_events_and_the_ends_of_all_logs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    (folder.logs / "learner.log").write_text("goodbye\n")
    journal = Journal(folder.logs / "supervisor.log", lambda text: None)
    journal.note("part_died", part="learner")
    record = json.loads(write_flight_record(folder, journal, "why", [{"kind": "published"}]).read_text())
    assert record["reason"] == "why"
    assert record["supervisor"][0]["part"] == "learner"
    assert record["logs"]["learner"] == ["goodbye"]
    assert record["parts"] == [{"kind": "published"}]
