"""The fencing token of a run's one writer: a learner that wakes up after another took over writes nothing any more.

    fence = take_over(client, keys, folder.learner_epoch)     # 8: every earlier learner is fenced from now on
    with fence.guard(): ...                                   # a change on disk; FencedError once 9 has taken over
    fence.script(client, keys, scripts.ISSUE)(keys, args)     # a change in Redis, checked there

The epoch stands in a file of the run's folder and in Redis. Both are checked: the file under a lock that a writer
holds during its change, Redis within the very script that changes it. A lock alone is not enough: a process that was
stopped, or that lost its disk for a while, does not know that its lock has gone.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import ResponseError

from services import durable
from services.durable import WriteGuard
from services.errors import DeadlineError, FencedError
from services.streams import scripts
from services.streams.connection import Keys

LOCKED_S = 60.0
"""How long another writer may hold the file's lock: it does while it renames, and a stopped one holds it for longer."""
TRY_AGAIN_S = 0.02
MAX_EPOCH = 1 << 52
"""A number of Redis above this is not ours: Lua counts exactly up to 2^53."""

Script = Callable[[Sequence[str], Sequence[Any]], Any]
"""Runs a script with these keys and arguments."""


class Fence(WriteGuard):
    """One writer's epoch. Epoch 0, without a file, checks nothing: for whoever is alone with its run."""

    def __init__(self, epoch: int = 0, path: Path | None = None) -> None:
        super().__init__(epoch)
        self._path = path
        self._mutex = threading.RLock()
        self._depth = 0

    def check(self) -> None:
        """Raises FencedError when a later learner has taken over."""
        if self._path is not None:
            self._check(_read(self._path))

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Nobody takes over during the block; FencedError when somebody has. Blocks of one process may be nested."""
        if self._path is None:
            yield
            return
        with self._mutex, contextlib.ExitStack() as stack:
            if self._depth == 0:
                stack.enter_context(_locked(self._path))
                self.check()
            self._depth += 1
            stack.callback(self._leave)
            yield

    def script(self, client: redis.Redis, keys: Keys, source: str) -> Script:
        """The script, which does nothing and raises FencedError when a later learner has taken over."""
        if self._path is None:
            return client.register_script(source)
        fenced = client.register_script(scripts.FENCED + source)

        def run(names: Sequence[str], arguments: Sequence[Any]) -> Any:
            self.check()
            try:
                return fenced([*names, keys.epoch], [*arguments, self.epoch])
            except ResponseError as error:
                if not str(error).startswith("FENCED"):
                    raise
                raise self._fenced(str(error).removeprefix("FENCED").strip()) from error

        return run

    def _check(self, newest: int) -> None:
        if newest > self.epoch:
            raise self._fenced(str(newest))

    def _fenced(self, newest: str) -> FencedError:
        return FencedError(
            f"another learner has taken over this run (epoch {newest}, this one has {self.epoch}): it writes no more",
            hint="a run has one learner: look which other host or process trains this folder, or uses its Redis",
        )

    def _leave(self) -> None:
        self._depth -= 1


UNFENCED = Fence()


def take_over(client: redis.Redis, keys: Keys, path: Path) -> Fence:
    """Become the run's one writer: the epoch is above all that file and Redis have seen.

    DeadlineError when another writer, which may be stopped, holds the file's lock.
    """
    with _locked(path) as handle:
        stored = client.get(keys.epoch)
        in_redis = int(stored) if isinstance(stored, bytes) and stored.isdigit() and len(stored) <= 16 else 0
        epoch = max(_read(path), in_redis if in_redis < MAX_EPOCH else 0) + 1
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{epoch}\n".encode(), 0)
        os.fsync(handle)
        client.set(keys.epoch, epoch)
    return Fence(epoch, path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    with durable.explained(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        started = time.monotonic()
        while not durable.try_lock(handle):
            if time.monotonic() - started >= LOCKED_S:
                raise DeadlineError(
                    "another learner",
                    f"{path} is locked by it in the middle of a change",
                    LOCKED_S,
                    hint="it is stopped or hangs: end it (fuser shows its process), then start again",
                )
            time.sleep(TRY_AGAIN_S)
        yield handle
    finally:
        os.close(handle)


def _read(path: Path) -> int:
    """The epoch in the file; 0 where it is missing or unreadable, as Redis then knows it."""
    try:
        text = path.read_bytes()[:32].strip()
    except FileNotFoundError:
        return 0
    return int(text) if text.isdigit() and int(text) < MAX_EPOCH else 0
