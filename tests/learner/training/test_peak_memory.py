"""What a rank has, and the peak of the time since it was last asked for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from learner.memory.machine import host_memory
from learner.parallel.launch_env import GPU_SHARE
from learner.training.peak_memory import cap_memory, room_on, take_peak_bytes

CPU = torch.device("cpu")
LARGE_BYTES = 256 << 20


def test_a_peak_is_seen_and_forgotten() -> None:
    take_peak_bytes(CPU)
    quiet = take_peak_bytes(CPU)
    np.ones(LARGE_BYTES, np.uint8)
    assert take_peak_bytes(CPU) - quiet > LARGE_BYTES / 2
    assert take_peak_bytes(CPU) - quiet < LARGE_BYTES / 2


def test_on_cpu_ranks_have_the_hosts_memory() -> None:
    room = room_on(CPU)
    assert (room.device, room.rank_bytes) == ("cpu", host_memory().limit)
    assert room.for_rank(4) == room.rank_bytes // 4


@pytest.mark.parametrize(("share", "gib"), [(None, 80.0), ("0.5", 41.5)])
def test_on_a_gpu_a_rank_has_its_share_with_what_libraries_take_beside_it(
    monkeypatch: pytest.MonkeyPatch, share: str | None, gib: float
) -> None:
    gpu = torch.device("cuda", 0)
    fractions = {gpu: 1.0}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 << 30))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda part, device: fractions.update({device: part})
    )
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", fractions.__getitem__)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if share is not None:
        monkeypatch.setenv(GPU_SHARE, share)
    cap_memory(gpu)
    assert room_on(gpu).rank_bytes / 2**30 == gib
