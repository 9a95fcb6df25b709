"""One operating-system process per part: started into its own group, logged to its own file, never orphaned.

Knows signals, groups and logs; not what a part does nor when it should run.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from services import durable
from services.run_folder import last_lines

MARK = "SEPT_SUPERVISED"
"""Environment variable that every process of a supervised run inherits; its value is the run's folder."""

PR_SET_PDEATHSIG = 1
LAST_WORDS_BYTES = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Spec:
    """What to start: the part's name, its command, where its output goes, its whole environment."""

    name: str
    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str]


class Process:
    """A started part. Its group is killed with it, so an engine's helpers never outlive it."""

    def __init__(self, spec: Spec, child: asyncio.subprocess.Process) -> None:
        self.spec = spec
        self._child = child
        self._started = asyncio.get_running_loop().time()

    @classmethod
    async def start(cls, spec: Spec, *, run: Path) -> Self:
        """Start the part as a member of the run whose folder is `run`, an absolute path."""
        supervisor = os.getpid()
        with durable.explained(spec.log):
            log = spec.log.open("ab")
        with log:
            child = await asyncio.create_subprocess_exec(
                *spec.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env={**spec.env, MARK: str(run)},
                start_new_session=True,  # Ctrl-C reaches the supervisor only, which drains in order
                preexec_fn=lambda: die_with_parent(supervisor, signal.SIGTERM),
            )
        return cls(spec, child)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def lived_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started

    async def wait(self) -> int:
        """The exit code (negative: the signal that ended it), after its whole group is gone."""
        code = await self._child.wait()
        self.kill()
        return code

    def terminate(self) -> None:
        """Ask the part to drain; its helpers are the part's own to stop."""
        with contextlib.suppress(ProcessLookupError):
            self._child.terminate()

    def kill(self) -> None:
        """End the part and everything that it started, now."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)


def die_with_parent(parent: int, by: signal.Signals) -> None:
    """Have this process be sent the signal when its parent, that process, is gone, however it went."""
    _libc.prctl(PR_SET_PDEATHSIG, by, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def last_words(log: Path, lines: int = 40) -> list[str]:
    """The last lines that a part wrote, however large its log is."""
    return [line.decode(errors="replace") for line in last_lines(log, LAST_WORDS_BYTES)[-lines:]]


def sweep(run: Path) -> list[int]:
    """Kill what an earlier supervisor of this run left behind (it was killed before it could); returns the pids.

    Only call it while holding the run's lock. The mark in the environment makes a re-used pid harmless.
    """
    mark = f"{MARK}={run.resolve()}".encode()
    swept = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
                swept.append(int(entry.name))
    return swept
