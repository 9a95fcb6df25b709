"""One supervisor and one learner per run folder."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from services import durable
from services.errors import DeadlineError, UnavailableError
from services.run_folder import RunFolder

PROBED_S = 0.5
"""`is_run_locked` holds the lock for an instant: a supervisor that finds it held tries again for so long."""


@contextlib.contextmanager
def run_lock(folder: RunFolder) -> Iterator[None]:
    """Hold the supervisor's lock during the block; UnavailableError names the holder when another process has it.

    The operating system releases the lock when its holder dies in whatever way.
    """
    path = folder.supervisor_lock
    with durable.explained(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        started = time.monotonic()
        while not durable.try_lock(handle):
            if time.monotonic() - started >= PROBED_S:
                holder = path.read_text().strip() or "another process"
                raise UnavailableError(
                    f"{folder.path} is already being run by {holder}",
                    hint=f"watch it with `sept status --run {folder.path}`, stop it with Ctrl-C, "
                    "or give run.dir another folder",
                )
            time.sleep(PROBED_S / 10)
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def is_run_locked(folder: RunFolder) -> bool:
    """Whether a supervisor runs the folder now."""
    return durable.is_locked(folder.supervisor_lock)


LEARNER_CHECK_S = 0.2
"""How often a learner that waits for another one to end tries again."""


@contextlib.contextmanager
def learner_lock(folder: RunFolder, deadline_s: float) -> Iterator[None]:
    """Hold the learner's lock during the block; waits up to the deadline for another learner to end.

    A learner that was replaced on another node may still be finishing its round and writing its checkpoint.
    """
    path = folder.learner_lock
    with durable.explained(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    started = time.monotonic()
    try:
        while not durable.try_lock(handle):
            if time.monotonic() - started >= deadline_s:
                raise DeadlineError(
                    "another learner",
                    f"{folder.path} is still being trained by it",
                    deadline_s,
                    hint="a run has one learner: stop the other, or give run.dir another folder",
                )
            time.sleep(LEARNER_CHECK_S)
        yield
    finally:
        os.close(handle)
