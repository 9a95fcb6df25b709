"""The peak is of the time since it was last asked for."""

from __future__ import annotations

import numpy as np
import torch

from learner.training.peak_memory import take_peak_bytes

CPU = torch.device("cpu")
LARGE_BYTES = 256 << 20


def test_a_peak_is_seen_and_forgotten() -> None:
    take_peak_bytes(CPU)
    quiet = take_peak_bytes(CPU)
    np.ones(LARGE_BYTES, np.uint8)
    assert take_peak_bytes(CPU) - quiet > LARGE_BYTES / 2
    assert take_peak_bytes(CPU) - quiet < LARGE_BYTES / 2
