"""What a machine has, from files as the kernel writes them and a driver that answers by script."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.memory.machine import HostMemory, gpu_bytes, host_memory

KIB = 1024


def machine(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 700 kB\n")
    (proc / "self" / "cgroup").write_text(membership)
    for name, text in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text)
    return proc, cgroups


@pytest.mark.parametrize(
    ("membership", "files", "limit", "available"),
    [
        ("", {}, 1000, 700),
        ("0::/pod\n", {"pod/memory.max": "max\n"}, 1000, 700),
        ("0::/pod\n", {"pod/memory.max": f"{400 * KIB}\n", "pod/memory.current": f"{150 * KIB}\n"}, 400, 250),
        ("0::/pod/a\n", {"pod/memory.max": f"{300 * KIB}\n", "pod/memory.current": "0\n"}, 300, 300),
        (
            "9:cpu:/\n4:memory:/pod\n",
            {"memory/pod/memory.limit_in_bytes": f"{800 * KIB}\n", "memory/pod/memory.usage_in_bytes": "0\n"},
            800,
            700,
        ),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 1000, 700),
    ],
)
def test_the_limit_of_a_container_counts_where_it_is_less(
    tmp_path: Path, membership: str, files: dict[str, str], limit: int, available: int
) -> None:
    found = host_memory(*machine(tmp_path, membership, files))
    assert found == HostMemory(limit=limit * KIB, available=available * KIB)


def test_this_machine_has_some() -> None:
    found = host_memory()
    assert 0 < found.available <= found.limit


def told(lines: str) -> tuple[str, ...]:
    return ("printf", lines)


@pytest.mark.parametrize(
    ("names", "mib"), [(["1"], [40]), (["GPU-b", "0"], [40, 80]), (["2"], []), ([], []), (["0", "MIG-x"], [])]
)
def test_gpus_are_found_by_index_and_by_name(names: list[str], mib: list[int]) -> None:
    query = told("0, GPU-a, 80\\n1, GPU-b, 40\\n")
    assert gpu_bytes(names, query) == [size << 20 for size in mib]


@pytest.mark.parametrize("query", [("sept-no-such-program",), ("false",), told("no devices were found\\n")])
def test_a_driver_that_does_not_answer_is_no_error(query: tuple[str, ...]) -> None:
    assert gpu_bytes(["0"], query) == []
