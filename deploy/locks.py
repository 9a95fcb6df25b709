"""One supervisor and one learner per run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from services import durable
from services.errors import DeadlineError, UnavailableError


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock for the block; UnavailableError naming the holder when another process has it.

    The operating system releases the lock when its holder dies, however it dies.
    """
    path = folder / "supervisor.lock"
    with durable.explained(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text().strip() or "another process"
            raise UnavailableError(
                f"{folder} is already being run by {holder}",
                hint="watch it with `sept status`, stop it with Ctrl-C, or give run.dir another folder",
            ) from None
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


LEARNER_CHECK_S = 0.2
"""How often a learner that waits for another one's end looks again."""


@contextlib.contextmanager
def learner_lock(folder: Path, patience_s: float) -> Iterator[None]:
    """Hold the folder's place for a learner during the block; waits for a learner that is ending, DeadlineError after.

    A learner that was replaced elsewhere may still be finishing its round and writing its checkpoint.
    """
    path = folder / "learner.lock"
    with durable.explained(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    started = time.monotonic()
    try:
        while not _taken(handle):
            if time.monotonic() - started >= patience_s:
                raise DeadlineError(
                    "another learner",
                    f"{folder} is still being trained by it",
                    patience_s,
                    hint="a run has one learner: stop the other, or give run.dir another folder",
                )
            time.sleep(LEARNER_CHECK_S)
        yield
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
