"""Each mode computes again what it says, and the weights stay the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from learner.algorithms.base import Targets
from learner.algorithms.nll import nll
from learner.config import Recomputation
from learner.model.packing import Sequence, pack_sequences
from learner.training.trainer import Trainer
from tests.support import tiny_models

ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def calls(folder: Path, how: Recomputation) -> Counter[str]:
    """Operators of the forward and backward pass of one micro-batch."""
    model = tiny_models.load(folder, gradient_checkpointing=how)
    token = np.ones(9, np.int32)
    batch = pack_sequences([Sequence(token, token)])
    mode = Calls()
    with mode:
        model.leader_token_losses(batch, nll, Targets(batch.targets), 1.0).loss.backward()  # type: ignore[no-untyped-call]
    return mode.count


def test_light_computes_again_what_is_cheap_and_full_all_of_it(tmp_path: Path) -> None:
    off, light, full = (calls(tmp_path, how) for how in ("off", "light", "full"))
    layers = tiny_models.SHAPE["num_hidden_layers"]
    assert (off["silu"], light["silu"], full["silu"]) == (layers, 2 * layers, 2 * layers)
    assert (off[ATTENTION], light[ATTENTION], full[ATTENTION]) == (layers, layers, 2 * layers)
    products = [count["_linear_pointwise"] + count["mm"] + count["addmm"] for count in (off, light, full)]
    assert products[0] == products[1] < products[2]


def weights_after_a_round(folder: Path, how: Recomputation) -> list[torch.Tensor]:
    model = tiny_models.load(folder, gradient_checkpointing=how)
    Trainer(model, tiny_models.training()).train_round(tiny_models.samples())
    return list(model.module.parameters())


@pytest.mark.parametrize("how", ["light", "full"])
def test_the_weights_are_the_same_to_the_bit(tmp_path: Path, how: Recomputation) -> None:
    kept, again = weights_after_a_round(tmp_path, "off"), weights_after_a_round(tmp_path, how)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
