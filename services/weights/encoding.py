"""Makes the next version of the newest one's bytes, in a process of its own: applies what flipped, digests, encodes.

The learner's process writes positions and flips as a plainly coded delta into the next version's folder. From there on
this is work on whole weights, which would hold up training's thread: the encoder patches its copy of the newest
version, digests what changed, and writes the small coding or a snapshot where they are wanted.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from services import durable
from services.contracts import TensorEntry, WeightManifest
from services.errors import SeptError, UnavailableError
from services.tensors import RawTensor, Tensors, describe, version_digest, write_safetensors
from services.time_accounting import StateClock
from services.weights import delta
from services.weights.chain import patch
from services.weights.reader import DELTA_NAME, SNAPSHOT_NAME, WeightReader

OWN_PROCESS_BYTES = 1 << 28
"""Sets of tensors below this are encoded in the learner's process: they take less than it takes to start another."""
SMALL_CODING_BYTES_PER_S = 2e8
"""Of a whole model: the small coding is written and read at about this speed together, by one or two cores."""
QUICK_S = 2.0
"""Time that the small coding may always take: its bytes are a third to a half of the plain one's."""
STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Job:
    """A version to make."""

    parent: WeightManifest
    staged: Path
    """A folder that holds the plainly coded delta, and receives the other files."""
    small: bool
    """Whether the small coding replaces the plain one."""
    snapshot: bool
    """Whether a snapshot is written too. One takes the delta's place where that would not be smaller."""


@dataclass(frozen=True, slots=True)
class Made:
    """A version as it was made."""

    entries: tuple[TensorEntry, ...]
    seconds: dict[str, float]
    """Spent on each kind of work: load, apply, encode, digest, write."""


@dataclass(slots=True)
class _Held:
    """A version in memory. `owned` tensors are private bytes, the others shared or read-only."""

    digest: str
    entries: dict[str, TensorEntry]
    tensors: dict[str, RawTensor]
    owned: set[str]


class VersionEncoder:
    """Holds the newest version, and makes the next of it."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._reader = WeightReader(folder, run_id)
        self._held: _Held | None = None

    def hold(self, manifest: WeightManifest, tensors: Tensors) -> None:
        """Start from these tensors, whose bytes do not change; without it the version is read from its files."""
        entries = {entry.name: entry for entry in manifest.tensors}
        self._held = _Held(manifest.digest, entries, dict(tensors), set())

    def make(self, job: Job) -> Made:
        """Do the job. An error leaves nothing held: the next job reads its parent from the files."""
        clock = StateClock("load")
        held, self._held = self._held, None
        if held is None or held.digest != job.parent.digest:
            held = self._load(job.parent)
        clock.enter("apply")
        path = job.staged / DELTA_NAME
        parent = dict(held.tensors)
        if job.small:
            held.owned = set()  # the parent's bytes stay, to be compared with
        changed = patch(held.tensors, delta.decode(held.tensors, path.read_bytes()), held.owned)
        if job.small:
            clock.enter("encode")
            durable.write_file(path, delta.encode(parent, held.tensors))
        clock.enter("digest")
        for entry in describe({each.name: held.tensors[each.name] for each in changed}):
            held.entries[entry.name] = entry
        entries = tuple(held.entries[name] for name in sorted(held.entries))
        held.digest = version_digest(entries)
        clock.enter("write")
        smaller = path.stat().st_size < sum(tensor.nbytes for tensor in held.tensors.values())
        if not smaller:
            path.unlink()
        if job.snapshot or not smaller:
            write_safetensors(job.staged / SNAPSHOT_NAME, held.tensors)
        self._held = held
        return Made(entries, clock.seconds())

    def save(self, digest: str, path: Path) -> bool:
        """Write the tensors to a file, if they are those of the version with this digest."""
        if self._held is None or self._held.digest != digest:
            return False
        write_safetensors(path, self._held.tensors, lasting=False)
        return True

    def close(self) -> None:
        """Free the memory."""
        self._held = None

    def _load(self, manifest: WeightManifest) -> _Held:
        tensors = self._reader.load(manifest.weight_version)
        return _Held(manifest.digest, {entry.name: entry for entry in manifest.tensors}, tensors, set())


class EncoderProcess:
    """A VersionEncoder in a process of its own, which starts with the first job and ends with this process."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._arguments = (folder, run_id)
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        return None if self._process is None else self._process.pid

    def make(self, job: Job) -> Made:
        """As VersionEncoder.make; UnavailableError when the process has died, and the next job starts another."""
        made = self._call("make", job)
        assert isinstance(made, Made)
        return made

    def save(self, digest: str, path: Path) -> bool:
        """As VersionEncoder.save."""
        return bool(self._call("save", digest, path))

    def _call(self, method: str, *arguments: Any) -> Any:
        if self._connection is None:
            self._start()
        assert self._connection is not None
        try:
            self._connection.send((method, arguments))
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            code = self._stop()
            raise UnavailableError(
                f"the process that encodes weight versions ended with code {code}",
                hint="its own output above says why; -9 is the kernel's, for want of memory",
            ) from error
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """End the process, if it runs."""
        if self._process is not None:
            self._stop()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks and a CUDA context
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, *self._arguments), name="weight-encoder", daemon=True
        )
        self._process.start()
        theirs.close()
        self._connection = ours
        atexit.register(self.close)  # before multiprocessing's own end of its children, which a signal would not reach

    def _stop(self) -> int | None:
        """Its exit code."""
        atexit.unregister(self.close)
        assert self._process is not None
        if self._connection is not None:
            self._connection.close()
        self._process.join(STOP_S)
        self._process.kill()
        self._process.join(STOP_S)
        code = self._process.exitcode
        self._process.close()
        self._process = self._connection = None
        return code


def prefers_small(plain_bytes: int, full_bytes: int, line_bytes_per_s: float | None) -> bool:
    """Whether a delta should be coded small: where that is quick, or where sending the plain one takes longer.

    `line_bytes_per_s` None: nobody has measured the line, so no generator is far away.
    """
    coding_s = full_bytes / SMALL_CODING_BYTES_PER_S
    return coding_s <= QUICK_S or (line_bytes_per_s is not None and plain_bytes / line_bytes_per_s > coding_s)


def _serve(connection: Connection, folder: Path, run_id: str) -> None:
    """Main function of the process: does jobs until the other side is closed, or gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the learner ends it, once it has published
    encoder = VersionEncoder(folder, run_id)
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, arguments = connection.recv()
            try:
                answer = getattr(encoder, method)(*arguments)
            except SeptError as error:
                answer = error
            connection.send(answer)
