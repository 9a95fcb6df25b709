"""One supervisor per run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from services import durable
from services.errors import UnavailableError


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
