"""Whether the NVIDIA driver can run the CUDA release that PyTorch was built for."""

from __future__ import annotations

import re
from pathlib import Path

DRIVER_FILE = Path("/proc/driver/nvidia/version")

LEAST_DRIVERS = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
"""CUDA's major release -> the oldest Linux driver that runs all of its minor ones ("CUDA compatibility", table 2)."""

_DRIVER = re.compile(r"Kernel Module(?: for \S+)?\s+([0-9]+)\.([0-9]+)")


def driver_version(file: Path = DRIVER_FILE) -> tuple[int, int] | None:
    """The loaded kernel module's version; None where there is no driver, or none that says so."""
    try:
        found = _DRIVER.search(file.read_text())
    except OSError:
        return None
    return (int(found[1]), int(found[2])) if found else None


def driver_problem(driver: tuple[int, int] | None, cuda: str | None) -> tuple[str, str] | None:
    """(What is wrong, the remedy) on a machine with GPUs; None when driver and CUDA go together.

    `cuda`: `torch.version.cuda`, such as "13.0"; None for a PyTorch without CUDA.
    """
    if cuda is None:
        return "PyTorch was built without CUDA", "install requirements/cuda.txt"
    if driver is None:
        return "the GPUs' driver does not answer", "is it loaded? `nvidia-smi` must list the GPUs, in the container too"
    major = int(cuda.partition(".")[0])
    least = LEAST_DRIVERS.get(major)
    if least is not None and driver < least:
        older = max((release for release, needed in LEAST_DRIVERS.items() if driver >= needed), default=None)
        remedy = f"install a driver of at least {least[0]}.{least[1]}"
        if older is not None:
            remedy += f", or a PyTorch built for CUDA {older}"
        return f"driver {driver[0]}.{driver[1]} is too old for CUDA {cuda}", remedy
    return None
