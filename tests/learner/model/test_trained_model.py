"""The model as it is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from learner.algorithms.base import Targets
from learner.algorithms.nll import nll
from learner.model.model_loading import load_model
from learner.model.packing import Sequence, pack_sequences
from tests.support import tiny_models


def test_master_weights_are_float32_and_train_without_dropout(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path, tiny_models.config(attention_dropout=0.5), dtype=torch.bfloat16)
    model = load_model(str(folder), device="cpu")
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert model.module.training
    batch = pack_sequences([Sequence(np.arange(4, dtype=np.int32), np.arange(9, dtype=np.int32))])
    first, second = (model.leader_token_losses(batch, nll, Targets(batch.targets), 1.0).loss.item() for _ in range(2))
    assert first == second
