"""How much memory a rank has on its device, and how much this process has needed of it at most, round by round."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import torch

from learner.memory.fitting import Room
from learner.memory.machine import host_memory
from learner.memory.rank_memory import LIBRARIES_BYTES
from learner.parallel import launch_env

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to clear_refs: the peak of the resident memory starts again from what is resident now (man 5 proc)."""
KIB = 1024


def cap_memory(device: torch.device) -> None:
    """Keep to the part of a GPU that the launcher has left to this process; more is refused as out of memory."""
    share = os.environ.get(launch_env.GPU_SHARE)
    if device.type == "cuda" and share is not None:
        torch.cuda.set_per_process_memory_fraction(float(share), device)


def room_on(device: torch.device) -> Room:
    """What ranks have on devices of this kind: the part of a GPU that this process may use, or this host's memory."""
    if device.type == "cpu":
        return Room("cpu", host_memory().limit)
    total = torch.cuda.get_device_properties(device).total_memory
    fraction = torch.cuda.get_per_process_memory_fraction(device)
    allowed = total if fraction == 1 else int(total * fraction) + LIBRARIES_BYTES["cuda"]  # which no cap counts
    return Room("cuda", allowed, devices=torch.cuda.device_count())


def take_peak_bytes(device: torch.device) -> int:
    """Most memory since the last call: that tensors took on a GPU, else that was resident in all of the process.

    Where the system does not let the peak be reset, it is that of the whole life.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    with contextlib.suppress(OSError):
        CLEAR.write_text(RESET_PEAK)
    return int(found[1]) * KIB if found else 0
