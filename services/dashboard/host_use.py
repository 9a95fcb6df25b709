"""How much of this host is in use: its processors, its memory, and its GPUs where nvidia-smi tells of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

GPU_ANSWERS_WITHIN_S = 5.0
GPU_QUESTION = ("--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")


class HostUse:
    """use = HostUse(); ...; use.read()     # {"cpu_use": 0.93, "memory_use": 0.4}: shares in 0 .. 1

    `cpu_use` is that of the time since the last reading; what the host does not tell is left out.
    """

    def __init__(self, proc: Path = Path("/proc"), nvidia_smi: str | None = None) -> None:
        self._proc = proc
        self._nvidia_smi = nvidia_smi or shutil.which("nvidia-smi")
        self._ticks = self._read_ticks()

    def read(self) -> dict[str, float]:
        """Takes some milliseconds, with GPUs up to some seconds."""
        return {**self._cpu(), **self._memory(), **self._gpus()}

    def _cpu(self) -> dict[str, float]:
        before, self._ticks = self._ticks, self._read_ticks()
        if before is None or self._ticks is None or self._ticks[1] <= before[1]:
            return {}
        busy, all_ = self._ticks[0] - before[0], self._ticks[1] - before[1]
        return {"cpu_use": round(min(1.0, max(0.0, busy / all_)), 4)}

    def _read_ticks(self) -> tuple[int, int] | None:
        """(busy, all) ticks of all processors since the host started."""
        try:
            first = (self._proc / "stat").read_text().split("\n", 1)[0].split()
            ticks = [int(word) for word in first[1:9]]  # guests are counted among these already
        except (OSError, ValueError):
            return None
        idle = sum(ticks[3:5])  # waiting for a disk is idle
        return sum(ticks) - idle, sum(ticks)

    def _memory(self) -> dict[str, float]:
        try:
            lines = (self._proc / "meminfo").read_text().splitlines()
            sizes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
            return {"memory_use": round(1 - sizes["MemAvailable"] / sizes["MemTotal"], 4)}
        except (OSError, ValueError, KeyError, IndexError, ZeroDivisionError):
            return {}

    def _gpus(self) -> dict[str, float]:
        """Means over the GPUs that this process may see."""
        if self._nvidia_smi is None:
            return {}
        command = [self._nvidia_smi, *GPU_QUESTION]
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, timeout=GPU_ANSWERS_WITHIN_S, check=True, env=os.environ
            )
            gpus = [[float(cell) for cell in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
            return {
                "gpu_use": round(sum(busy for busy, _, _ in gpus) / len(gpus) / 100, 4),
                "gpu_memory_use": round(sum(used / total for _, used, total in gpus) / len(gpus), 4),
            }
        except (OSError, ValueError, ZeroDivisionError, subprocess.SubprocessError):
            return {}
