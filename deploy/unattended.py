"""What a command needs to work on when nobody reads its output any more: its streams, and the hang-up signal.

A closed terminal, a pipe whose reader has died or a full disk loses what is printed, and nothing else. A terminal or a
pager that takes nothing (Ctrl-S) delays nobody: a thread for each stream does the writing.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

MAX_WAITING_BYTES = 1 << 20
"""Output beyond this is dropped until the reader takes some."""
LAST_WORDS_S = 1.0
"""How long a command that ends waits for a reader that takes nothing."""


def work_unattended(*, by_thread: bool) -> None:
    """Let no write to standard output or error raise from now on; with `by_thread`, let none wait either.

    Processes that are forked later cannot use streams with a thread.
    """
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a write in the background must not stop the process
    sys.stdout = _lossy(sys.stdout, by_thread=by_thread)
    sys.stderr = _lossy(sys.stderr, by_thread=by_thread)


def hang_up_means(number: signal.Signals) -> None:
    """Treat the loss of the terminal (SIGHUP) as this signal; under nohup it stays ignored."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(number))


class LossyFile(io.RawIOBase):
    """Writes to a file descriptor; what cannot be written is dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process has made the terminal non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                break
        return size


class ThreadedFile(io.RawIOBase):
    """Hands what is written to a thread that writes it to `file`."""

    def __init__(self, file: LossyFile) -> None:
        self._file = file
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)

    def fileno(self) -> int:
        return self._file.fileno()

    def isatty(self) -> bool:
        return self._file.isatty()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        content = bytes(data)
        with self._changed:
            if self._waiting_bytes + len(content) <= MAX_WAITING_BYTES:
                self._waiting.append(content)
                self._waiting_bytes += len(content)
                self._changed.notify_all()
            if not self._thread.ident:
                self._thread.start()
        return len(content)

    def drain(self, seconds: float) -> None:
        """Wait until everything is written, at most so long."""
        give_up_at = time.monotonic() + seconds
        with self._changed:
            while self._waiting_bytes and (left_s := give_up_at - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                content = self._waiting.popleft()
            self._file.write(content)
            with self._changed:
                self._waiting_bytes -= len(content)
                self._changed.notify_all()


def _lossy(stream: TextIO | None, *, by_thread: bool) -> TextIO:
    """The stream for people in place of this one; a stream that is no file of this process stays."""
    if stream is None:  # closed by whoever started this process
        return Path(os.devnull).open("w", encoding="utf-8")
    if not any(stream is own for own in (sys.__stdout__, sys.__stderr__)):
        return stream
    file = LossyFile(stream.fileno())
    raw: io.RawIOBase = file
    if by_thread:
        raw = threaded = ThreadedFile(file)
        atexit.register(threaded.drain, LAST_WORDS_S)
    untyped: Any = raw  # a text stream takes any raw file, its type only buffered ones
    return io.TextIOWrapper(untyped, encoding=stream.encoding, errors="backslashreplace", write_through=True)
