"""Commands whose terminal or reader goes away: text is lost, and nothing else."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import exit_codes
from deploy.unattended import LAST_WORDS_S, MAX_WAITING_BYTES, LossyFile, ThreadedFile

PRINT_WITHOUT_END = """
import signal, sys
from deploy.unattended import work_unattended
work_unattended(by_thread={by_thread})
for number in range(100_000):
    print("a line for a person", number)
sys.stderr.write("and an error")
sys.exit(7)
"""
HANG_UP = """
import signal, sys
from deploy.unattended import hang_up_means
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
hang_up_means(signal.SIGTERM)
print("ready", flush=True)
sys.stdin.readline()
"""


def printing(*, by_thread: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PRINT_WITHOUT_END.format(by_thread=by_thread)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_reader_that_left_costs_the_text() -> None:
    reader, writer = os.pipe()
    file = LossyFile(writer)
    assert file.write(b"seen") == 4
    assert os.read(reader, 100) == b"seen"
    os.close(reader)
    assert file.write(b"lost") == 4
    os.close(writer)
    assert file.write(b"lost too") == 8


def test_a_terminal_that_is_closed_costs_the_text() -> None:
    controller, terminal = pty.openpty()
    file = LossyFile(terminal)
    assert file.isatty()
    os.close(controller)
    assert file.write(b"lost") == 4  # EIO
    os.close(terminal)


def test_a_reader_that_takes_nothing_delays_nobody_and_gets_all_that_fits_later() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    file = ThreadedFile(LossyFile(writer))
    line = b"x" * 1023 + b"\n"
    for _ in range(3 * MAX_WAITING_BYTES // len(line)):
        file.write(line)
    file.drain(0.0)
    got = bytearray()
    reading = threading.Thread(target=_read, args=(reader, got))
    reading.start()
    file.drain(20)
    os.close(writer)
    reading.join(20)
    os.close(reader)
    assert MAX_WAITING_BYTES // 2 <= len(got) <= MAX_WAITING_BYTES + 4096
    assert set(bytes(got).splitlines()) == {line.rstrip()}


def _read(reader: int, got: bytearray) -> None:
    while content := os.read(reader, 1 << 16):
        got.extend(content)


def test_a_command_ends_by_itself_whether_its_reader_left_or_sleeps() -> None:
    for by_thread in (False, True):
        process = printing(by_thread=by_thread)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        process.stderr.close()
        assert process.wait(60) == 7
    with printing(by_thread=True) as process:
        assert process.wait(60 + LAST_WORDS_S) == 7  # nobody reads the 2 MB that it prints


def test_closed_streams_are_no_error(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PRINT_WITHOUT_END.format(by_thread=True))
    command = f'"{sys.executable}" "{script}" >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], timeout=60, check=False).returncode == 7


@pytest.fixture
def hang_up_by_default() -> Iterator[None]:
    """The tests themselves may run under nohup, whose children would inherit that the signal is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_up_by_default")
def test_a_lost_terminal_drains_and_nohup_holds() -> None:
    for prefix, code in (([], 7), (["nohup"], 0)):
        command = [*prefix, sys.executable, "-c", HANG_UP]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGHUP)
            if prefix:
                process.stdin.write(b"go on\n")
                process.stdin.flush()
            assert process.wait(60) == code


def test_a_command_that_shows_something_ends_quietly_when_nobody_reads_on() -> None:
    command = [sys.executable, "-m", "sept", "completion", "bash"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (exit_codes.NO_READER, "")
