"""One operating-system process per part: started in a group of its own, logged to its own file, never orphaned."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from services import durable
from services.run_folder import last_lines

MARK = "SEPT_SUPERVISED"
"""Environment variable that every process of a supervised run inherits; its value is the run's folder."""

PR_SET_PDEATHSIG = 1
LOG_TAIL_BYTES = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to start: the part's name, its command, the file for its output, its whole environment."""

    name: str
    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str]
    mend: Callable[[str], str] | None = None
    """Gets what a process wrote that failed, may remove the cause, and says what it did; empty where it did nothing."""


class Process:
    """A started part. Its process group is killed with it, so an engine's own processes never outlive it."""

    def __init__(self, spec: ProcessSpec, child: asyncio.subprocess.Process, log_from: int) -> None:
        self.spec = spec
        self._child = child
        self._log_from = log_from
        self._started = asyncio.get_running_loop().time()

    @classmethod
    async def start(cls, spec: ProcessSpec, *, run: Path) -> Self:
        """Start the part as a member of the run whose folder is `run`, an absolute path."""
        supervisor = os.getpid()
        with durable.explained(spec.log):
            log = spec.log.open("ab")
        with log:
            log_from = log.tell()
            child = await asyncio.create_subprocess_exec(
                *spec.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env={**spec.env, MARK: str(run)},
                start_new_session=True,  # Ctrl-C reaches the supervisor only, which drains in order
                preexec_fn=lambda: die_with_parent(supervisor, signal.SIGTERM),
            )
        return cls(spec, child, log_from)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def lived_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started

    def output(self) -> str:
        """What this very process has written, the end of it if that is much."""
        with contextlib.suppress(OSError), self.spec.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_from, end - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
        return ""

    async def wait(self) -> int:
        """The exit code (negative: the signal that ended it), after its whole group is gone."""
        code = await self._child.wait()
        self.kill()
        return code

    def terminate(self) -> None:
        """Let the part drain; it stops the processes that it started itself."""
        with contextlib.suppress(ProcessLookupError):
            self._child.terminate()

    def kill(self) -> None:
        """End the part and everything that it started, now."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)


def die_with_parent(parent: int, by: signal.Signals) -> None:
    """The kernel sends this process the signal when its parent, process `parent`, has ended in whatever way."""
    _libc.prctl(PR_SET_PDEATHSIG, by, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def last_log_lines(log: Path, lines: int = 40) -> list[str]:
    """The last lines that a part wrote, however large its log is."""
    return [line.decode(errors="replace") for line in last_lines(log, LOG_TAIL_BYTES)[-lines:]]


def kill_leftovers(run: Path) -> list[int]:
    """Kill the processes that an earlier supervisor of this run could not end; returns their pids.

    Call it only while holding the run's lock. The mark in the environment makes a re-used pid harmless.
    """
    mark = f"{MARK}={run.resolve()}".encode()
    killed = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
                killed.append(int(entry.name))
    return killed
