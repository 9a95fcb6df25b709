"""What the kernel did to a part, from its own counters; and one kill by the real kernel, in a control group."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import memory_watch
from deploy.local.memory_watch import MemoryWatch
from deploy.local.processes import ProcessSpec
from deploy.local.supervised_part import RestartPolicy, SupervisedPart
from deploy.local.supervisor_log import SupervisorLog
from services.errors import UnavailableError

GROUP = 70
LIMIT_BYTES = 96 << 20


class Machine:
    """Files as the kernel writes them."""

    def __init__(self, folder: Path, membership: str) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        self.process(GROUP, GROUP, pages=1)
        (self.proc / str(GROUP) / "cgroup").write_text(membership)
        self.write(self.proc / "vmstat", "nr_free_pages 5\noom_kill 3\n")

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def process(self, pid: int, group: int, *, pages: int) -> None:
        fields = ["S", "1", str(group), *["0"] * 18, str(pages), "0"]
        self.write(self.proc / str(pid) / "stat", f"{pid} (a (strange) name) {' '.join(fields)}\n")

    def watch(self) -> MemoryWatch:
        return MemoryWatch(GROUP, self.proc, self.cgroups)


async def test_all_processes_of_a_group_count_and_the_largest_moment_is_kept(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/\n")
    machine.process(71, GROUP, pages=9)
    machine.process(72, 1, pages=1000)
    watch = machine.watch()
    watch.look()
    machine.process(71, GROUP, pages=2)
    watch.look()
    assert watch.peak_bytes == 10 * memory_watch.PAGE_BYTES


@pytest.mark.parametrize(
    ("membership", "counter"),
    [
        ("0::/pod/part\n", "pod/part/memory.events"),
        ("4:memory:/pod/part\n0::/\n", "memory/pod/part/memory.oom_control"),
        ("4:cpu,memory:/\n", "memory/memory.oom_control"),
    ],
)
async def test_a_kill_in_the_parts_own_control_group_is_seen(tmp_path: Path, membership: str, counter: str) -> None:
    machine = Machine(tmp_path, membership)
    machine.write(machine.cgroups / counter, "low 0\noom 0\noom_kill 1\n")
    watch = machine.watch()
    assert not watch.killed_by_kernel()
    machine.write(machine.cgroups / counter, "low 0\noom 1\noom_kill 2\n")
    assert watch.killed_by_kernel()


async def test_a_kill_on_a_machine_without_control_groups_is_seen(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "")
    watch = machine.watch()
    machine.write(machine.proc / "vmstat", "oom_kill 4\n")
    assert watch.killed_by_kernel()


async def test_a_kill_long_ago_explains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, "")
    watch = machine.watch()
    machine.write(machine.proc / "vmstat", "oom_kill 4\n")
    monkeypatch.setattr(memory_watch, "RECENT_S", 0.0)
    assert not watch.killed_by_kernel()


@pytest.fixture
def small_room() -> Iterator[Path]:
    """A control group with a limit; a process whose id is written into its cgroup.procs is in it."""
    for base, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        room = base / f"sept-test-{os.getpid()}"
        try:
            room.mkdir()
            (room / limit).write_text(str(LIMIT_BYTES))
        except OSError:
            with contextlib.suppress(OSError):
                room.rmdir()
            continue
        yield room
        room.rmdir()
        return
    pytest.skip("no control group with a limit can be made here")


async def test_a_part_that_the_kernel_kills_is_told_so_with_its_size_and_not_started_forever(
    tmp_path: Path, small_room: Path
) -> None:
    grow = f"""
import os
open({str(small_room / "cgroup.procs")!r}, "w").write(str(os.getpid()))
held = []
while True:
    held.append(bytearray(b"1") * (1 << 20))
"""
    log = SupervisorLog(tmp_path / "supervisor.log", lambda text: None)
    spec = ProcessSpec("learner", (sys.executable, "-c", grow), tmp_path / "learner.log", dict(os.environ))
    part = SupervisedPart(spec, tmp_path, RestartPolicy(first_delay_s=0.01), log, may_finish=True)
    with pytest.raises(
        UnavailableError, match=r"learner was killed by the kernel for lack of memory.*2 times"
    ) as caught:
        await part.task
    assert "training.gradient_checkpointing" in str(caught.value.hint)
    assert "killed by the kernel for lack of memory" in (tmp_path / "supervisor.log").read_text()
