"""How much memory this process has needed at most, round by round."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to clear_refs: the peak of the resident memory starts again from what is resident now (man 5 proc)."""
KIB = 1024


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
