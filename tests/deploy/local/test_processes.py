"""Processes of parts: their groups, their logs, and what happens when their supervisor dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.local.processes import MARK, Process, kill_leftovers, last_log_lines
from tests.support.supervised_parts import SERVE, STUBBORN, WITH_HELPER, Watcher, watching


@pytest.fixture
async def watcher(tmp_path: Path) -> AsyncIterator[Watcher]:
    async with watching(tmp_path) as watcher:
        yield watcher


async def test_helpers_of_a_part_do_not_outlive_it(watcher: Watcher) -> None:
    process = await Process.start(watcher.script("part", WITH_HELPER), run=watcher.folder)
    assert await process.wait() == 0
    await watcher.until(lambda: watcher.gone == ["part"])  # the helper held the line open


async def test_what_a_killed_supervisor_left_running_is_killed(watcher: Watcher, tmp_path: Path) -> None:
    spec = watcher.script("left", STUBBORN)
    child = await asyncio.create_subprocess_exec(*spec.argv, env={**os.environ, MARK: str(tmp_path)})
    await watcher.until_up("left")
    assert kill_leftovers(tmp_path / "another-run") == []
    assert kill_leftovers(tmp_path) == [child.pid]
    assert await child.wait() == -signal.SIGKILL


async def test_parts_are_told_to_drain_when_the_supervisor_dies(watcher: Watcher) -> None:
    """The supervisor is a child of this test, killed the hard way; its part drains by itself."""
    spec = watcher.script("orphan", SERVE)
    source = (
        "import asyncio, os\nfrom pathlib import Path\nfrom deploy.local.processes import Process, ProcessSpec\n"
        f"spec = ProcessSpec('orphan', {spec.argv!r}, Path({str(spec.log)!r}), dict(os.environ))\n"
        f"async def main():\n    await (await Process.start(spec, run=Path({str(watcher.folder)!r}))).wait()\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", source)
    await watcher.until_up("orphan")
    child.kill()
    await child.wait()
    await watcher.until(lambda: watcher.gone == ["orphan"])
    assert "drained" in spec.log.read_text()


def test_the_last_lines_are_the_end_of_a_log_of_any_size(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    assert last_log_lines(log) == []
    log.write_text("\n".join(f"line {number}" for number in range(100_000)))
    assert last_log_lines(log, 2) == ["line 99998", "line 99999"]
