"""How busy a host is comes from what its kernel and nvidia-smi tell; what they do not tell is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.dashboard.host_use import HostUse


def proc(folder: Path, stat: str, meminfo: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(stat)
    (folder / "meminfo").write_text(meminfo)
    return folder


def test_the_processors_share_is_that_since_the_last_look(tmp_path: Path) -> None:
    host = HostUse(proc(tmp_path / "proc", "cpu  100 0 100 700 100 0 0 0 50 0\n"), "/bin/false")
    assert host.read() == {}, "no time has passed"
    proc(tmp_path / "proc", "cpu  150 0 125 710 115 0 0 0 99 0\n", "MemTotal: 1000 kB\nMemAvailable: 250 kB\n")
    assert host.read() == {"cpu_use": 0.75, "memory_use": 0.75}


@pytest.mark.parametrize("stat", ["", "cpu 1 x\n", "intr"])
@pytest.mark.parametrize("meminfo", ["", "MemTotal:", "MemTotal: 0 kB\nMemAvailable: 0 kB", "garbage"])
def test_a_kernel_that_tells_nothing_is_no_error(tmp_path: Path, stat: str, meminfo: str) -> None:
    assert HostUse(proc(tmp_path / "proc", stat, meminfo), "/bin/false").read() == {}
    assert HostUse(tmp_path / "nowhere", "/nowhere/nvidia-smi").read() == {}


def nvidia_smi(folder: Path, script: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_gpus_are_a_mean(tmp_path: Path) -> None:
    tool = nvidia_smi(tmp_path, 'test "$1" = "--query-gpu=utilization.gpu,memory.used,memory.total" && '
                                "printf '100, 60000, 80000\\n50, 20000, 80000\\n'")  # fmt: skip
    assert HostUse(tmp_path / "nowhere", tool).read() == {"gpu_use": 0.75, "gpu_memory_use": 0.5}


@pytest.mark.parametrize("answer", ["exit 9", "true", "echo 'No devices were found'", "echo '[N/A], [N/A], [N/A]'"])
def test_a_gpu_that_does_not_tell_is_left_out(tmp_path: Path, answer: str) -> None:
    assert HostUse(tmp_path / "nowhere", nvidia_smi(tmp_path, answer)).read() == {}
