"""A supervisor on tiny real processes: their scripts, their plan, and what a test sees of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from deploy.local.processes import ProcessSpec
from deploy.local.supervised_part import RestartPolicy
from deploy.local.supervisor import RunPlan, Supervisor
from deploy.local.supervisor_log import SupervisorLog

CALL = """
import signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
line = socket.socket(socket.AF_UNIX)
line.connect(%r)
line.sendall(b"%s\\n")
"""
"""A child connects to the test when it is up; the connection closes when it and all that inherited it have ended."""

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


class Asked:
    """The number of generators as a test asks for it."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[int] = asyncio.Queue()

    async def follow(self) -> AsyncIterator[int]:
        while True:
            yield await self.queue.get()


class Watcher:
    """Receives the log and the children's connections, and lets a test wait for what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.up: list[str] = []
        self.gone: list[str] = []
        self.log = SupervisorLog(folder / "supervisor.log", self._note)
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

    def script(self, name: str, code: str) -> ProcessSpec:
        source = CALL % (self.address, name) + code
        return ProcessSpec(name, (sys.executable, "-c", source), self.folder / f"{name}.log", dict(os.environ))

    def plan(self, learner: str = SERVE, *, services: str = SERVE) -> RunPlan:
        return RunPlan(
            redis=self.script("redis", SERVE),
            services=self.script("services", services),
            learner=self.script("learner", learner),
            generator=lambda index: self.script(f"generator-{index}", SERVE),
            generators_target=1,
        )

    def supervisor(self, plan: RunPlan, asked: Asked | None = None) -> Supervisor:
        return Supervisor(plan, run=self.folder, generators_target=asked or Asked(), log=self.log, policy=HASTY)


@contextlib.asynccontextmanager
async def watching(folder: Path) -> AsyncIterator[Watcher]:
    watcher = Watcher(folder)
    server = await asyncio.start_unix_server(watcher.answer, watcher.address)
    yield watcher
    server.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
