"""AdamW with moments in host memory takes the steps of torch's AdamW, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learner.training import offloaded_adamw
from learner.training.offloaded_adamw import OffloadedAdamW

SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((37, 11), (5,), (64, 8))]


def take_steps(optimizer: torch.optim.Optimizer, ours: list[torch.nn.Parameter], steps: int = 5) -> None:
    torch.manual_seed(1)
    for step in range(steps):
        for index, p in enumerate(ours):
            p.grad = None if (step, index) == (2, 1) else torch.randn_like(p)
        optimizer.step()


@pytest.mark.parametrize("piece", [64, 1 << 25])
def test_the_steps_are_those_of_adamw(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(offloaded_adamw, "PIECE_ELEMENTS", piece)
    ours, theirs = parameters(), parameters()
    offloaded, plain = OffloadedAdamW(list(ours), SETTINGS), torch.optim.AdamW(theirs, fused=True, **SETTINGS)
    take_steps(offloaded, ours)
    take_steps(plain, theirs)
    for own, true in zip(ours, theirs, strict=True):
        assert torch.equal(own, true)
        assert all(torch.equal(offloaded.state[own][key], plain.state[true][key]) for key in plain.state[true])
