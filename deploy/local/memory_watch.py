"""Tells a part that the kernel killed for lack of memory from one that somebody else killed, and how large it was.

The kernel counts its kills: `oom_kill` in /proc/vmstat (man 5 proc_vmstat), and where a container has a limit of its
own also in memory.events of its control group (version 2) or memory.oom_control (version 1).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
SAMPLE_EVERY_S = 1.0
RECENT_S = 30.0
"""A generator notices within this time that the kernel has killed its engine's process, and ends."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class MemoryWatch:
    """Follows one process group from its start to its end.

    watch = MemoryWatch(pid)                # of a process that leads a group of its own
    following = asyncio.create_task(watch.follow())
    ...                                     # it ends
    watch.killed_by_kernel()                # whether the kernel killed a process for memory shortly before
    watch.peak_bytes                        # most memory that the group was seen with
    """

    def __init__(self, group: int, proc: Path = PROC, cgroups: Path = CGROUPS) -> None:
        self._group = group
        self._proc = proc
        self._counters = [proc / "vmstat", *_counters_of_groups(proc / str(group) / "cgroup", cgroups)]
        self._kills = self._read_kills()
        self._killed_at: float | None = None
        self.peak_bytes = 0

    async def follow(self) -> None:
        """Look once a second until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(SAMPLE_EVERY_S)

    def look(self) -> None:
        """Note how large the group is, and whether the kernel has killed any process since the last look."""
        self.peak_bytes = max(self.peak_bytes, _resident_bytes(self._proc, self._group))
        kills = self._read_kills()
        if kills != self._kills:
            self._kills, self._killed_at = kills, asyncio.get_running_loop().time()

    def killed_by_kernel(self) -> bool:
        """Whether the kernel has killed a process for lack of memory within the last `RECENT_S` seconds."""
        self.look()
        return self._killed_at is not None and asyncio.get_running_loop().time() - self._killed_at < RECENT_S

    def _read_kills(self) -> Counter[Path]:
        found: Counter[Path] = Counter()
        for path in self._counters:
            with contextlib.suppress(OSError):
                match = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
                found[path] = int(match[1]) if match else 0
        return found


def _counters_of_groups(membership: Path, cgroups: Path) -> Iterator[Path]:
    """Where the kernel counts its kills in the control group that the file names, by either version (man 7 cgroups)."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # it has ended already
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield cgroups / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield cgroups / "memory" / path.lstrip("/") / "memory.oom_control"


def _resident_bytes(proc: Path, group: int) -> int:
    """Memory of all processes of the group; pages that several of them share count for each."""
    pages = 0
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # After the command's name in parentheses: state, parent, group; resident pages are the 22nd from there.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                pages += int(fields[21]) if int(fields[2]) == group else 0
    return pages * PAGE_BYTES
