"""Which memory the generators of a host share, and whose turn it is to change it.

Usually there is one copy for a run. A process that is stopped while it has a lock does not stop the others for ever:
they leave the copy to it and share a newer one. It joins them when it goes on.

folder/<host>/<run>/turn      locked by the process that changes a copy or makes one; its process id
folder/<host>/<run>/<copy>/   `services.weights.host_copy`; the newest has the highest number

A host is the processes that can see each other: containers are hosts of their own, also where they share the folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from services import durable
from services.weights.host_copy import MEMORY_PREFIX, HostCopy, Place, is_in_use, is_stopped, places_of

GRACE_S = 10.0
"""A process that is stopped may go on within this time before others take its lock for stuck."""
LIMIT_S = 1800.0
"""Longest wait for a lock of a process that runs: it downloads a version, or builds one."""
NUMBER_DIGITS = 8
"""At the start of a copy's name."""

log = structlog.get_logger()


class HostCopies:
    """The copies of one run on this host, and which of them is used here. Usually there is one."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.run_id = run_id
        self._all_runs = folder / _host_id()
        self._folder = self._all_runs / run_id
        self._current: HostCopy | None = None
        self._abandoned = ""
        """The last copy that was; those before it are not used again either."""
        self._turn: int | None = None
        with durable.explained(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)  # whoever can write here decides what all generators serve

    def newest(self) -> HostCopy | None:
        """The copy that all share now, which may be another one than before; None: it is to be made."""
        names = (path.name for path in _copies_in(self._folder))
        for name in sorted((name for name in names if name > self._abandoned), reverse=True):
            if self._current is not None and name == self._current.name:
                return self._current
            if joined := _join(self._folder / name):
                return self._use(joined)
        self._use(None)
        return None

    def create(self, size_bytes: int) -> HostCopy:
        """A copy that holds nothing yet, exclusively locked. Only with the turn, so that one is made at a time."""
        self._clear()
        earlier = max([self._abandoned, *(path.name for path in _copies_in(self._folder))])
        name = f"{int(earlier[:NUMBER_DIGITS] or 0) + 1:0{NUMBER_DIGITS}d}-{secrets.token_hex(8)}"
        handle = os.memfd_create(MEMORY_PREFIX + name)
        os.ftruncate(handle, size_bytes)
        prepared = self._folder / f"{durable.TEMPORARY_PREFIX}{name}"
        for part in ("places", "steps"):
            (prepared / part).mkdir(parents=True)
        Place(os.getpid(), handle).register(prepared)
        copy = HostCopy(self._folder / name, handle)
        copy.try_lock(shared=False)
        prepared.rename(copy.folder)
        self._use(copy)
        return copy

    def abandon(self) -> None:
        """Leave the copy that is used here, for a newer one."""
        if self._current is not None:
            self._abandoned = self._current.name
        self._use(None)

    def close(self) -> None:
        self._use(None)

    def try_turn(self) -> bool:
        """Take the right to change or make a copy; False while another process has it."""
        handle = os.open(self._folder / "turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if durable.try_lock(handle) and _is_at(handle, self._folder / "turn"):
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            self._turn = handle
            return True
        os.close(handle)
        return False

    def leave_turn(self) -> None:
        """Let another process change or make a copy."""
        if self._turn is not None:
            os.close(self._turn)
        self._turn = None

    def break_stuck_turn(self, waited_s: float) -> None:
        """Free the turn of a process that was stopped or has kept it too long: it keeps the lock of a removed file.

        That two processes then believe to have the turn does no harm: the copy's own lock protects its bytes.
        """
        turn = self._folder / "turn"

        def is_owner_stopped() -> bool:
            return is_stopped(int(turn.read_bytes() or b"0"))

        with contextlib.suppress(FileNotFoundError, ValueError):
            if is_stuck(waited_s, is_owner_stopped):
                log.warning("weight_copy_turn_taken", waited_s=round(waited_s))
                turn.unlink()

    def _use(self, copy: HostCopy | None) -> HostCopy | None:
        if self._current is not None and self._current is not copy:
            self._current.close()
        self._current = copy
        return copy

    def _clear(self) -> None:
        """Remove what killed processes left, of this run and of others."""
        durable.clear_partial(self._folder)
        for run in self._all_runs.iterdir():
            for folder in _copies_in(run):
                if not is_in_use(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def is_stuck(waited_s: float, is_stopped: Callable[[], bool]) -> bool:
    """Whether to wait no longer for a lock; `is_stopped`: whether a process that may have it was stopped."""
    return waited_s > LIMIT_S or (waited_s > GRACE_S and is_stopped())


def _host_id() -> str:
    """The same for processes that find each other in /proc: of one boot of a machine, in one namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"


def _join(folder: Path) -> HostCopy | None:
    """The copy, opened where another process has it open; None when none has."""
    for place in places_of(folder):
        if not place.holds(folder.name):
            continue
        with contextlib.suppress(OSError):  # it ended just now, or this process may not look into it
            handle = os.open(place.link, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            if Place(os.getpid(), handle).holds(folder.name) and Place(os.getpid(), handle).register(folder):
                return HostCopy(folder, handle)
            os.close(handle)
    return None


def _copies_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(durable.TEMPORARY_PREFIX))


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False
