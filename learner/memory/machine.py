"""How much memory this machine has: the host's, and each GPU's without loading CUDA."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")
ANSWERS_WITHIN_S = 20.0
"""The driver may have to be loaded first."""
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class HostMemory:
    """In bytes."""

    limit: int
    """Of this machine, or of the container that this process is in if that is less."""
    available: int
    """What programs could take now without swapping."""


def host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> HostMemory:
    """From /proc/meminfo (man 5 proc_meminfo) and the control group of this process (man 7 cgroups)."""
    lines = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    total, available = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit, used = total, 0
    for folder, limit_name, used_name in _groups(proc, cgroups):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            of_group = int((folder / limit_name).read_text())
            if of_group < limit:
                limit, used = of_group, int((folder / used_name).read_text())
    return HostMemory(limit=limit, available=min(available, max(0, limit - used)) if limit < total else available)


def _groups(proc: Path, cgroups: Path) -> list[tuple[Path, str, str]]:
    """The control groups whose limits hold for this process: its own and those above, with the names of their files."""
    found = []
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = cgroups, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        own = root / path.lstrip("/")
        found += [(folder, *names) for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return found


def gpu_bytes(names: Sequence[str], query: Sequence[str] = QUERY) -> list[int]:
    """Memory of each of these GPUs, named as CUDA_VISIBLE_DEVICES does; empty when the driver does not tell of all."""
    sizes = gpu_sizes(query) if names else {}
    return [sizes[name] for name in names] if all(name in sizes for name in names) else []


def gpu_sizes(query: Sequence[str] = QUERY) -> dict[str, int]:
    """Memory of every GPU, by its index and by its UUID; empty when the driver does not tell."""
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=ANSWERS_WITHIN_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    sizes: dict[str, int] = {}
    for line in told.splitlines():
        with contextlib.suppress(ValueError):
            index, uuid, total = (field.strip() for field in line.split(","))
            sizes[index] = sizes[uuid] = int(total) * MIB
    return sizes
