"""The check of the kernels that train in 16 bits: right ones pass, and each way to be wrong is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from learner.model import attention
from learner.model.model_loading import load_model
from learner.model.trained_model import TrainedModel
from services.errors import ModelError
from tests.support import tiny_models

WINDOWED: dict[str, Any] = {
    "use_sliding_window": True,
    "sliding_window": 40,
    "max_window_layers": 0,
    "max_position_embeddings": 512,
}


def load(folder: Path) -> TrainedModel:
    return load_model(str(folder), device="cpu", compute_dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def ends_group(one_rank_group: None) -> None: ...


@pytest.mark.parametrize("changes", [{"max_position_embeddings": 512}, WINDOWED])
def test_right_kernels_pass_with_grouped_heads_and_windows(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = load(tiny_models.save(tmp_path, tiny_models.config(**changes), dtype=torch.bfloat16))
    assert model.compute_dtype == torch.bfloat16, "or nothing was checked"


def wrong_in_bf16(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """The kernel of float32 stays right, as that of a CPU would while CUDA's is wrong."""
    right = attention._per_sequence

    def kernel(query: Any, key: Any, value: Any, lengths: Any, scaling: Any, window: Any) -> Any:
        arguments = (query, key, value, lengths, scaling, window)
        return right(*(change(*arguments) if query.dtype == torch.bfloat16 else arguments))

    monkeypatch.setattr(attention, "_per_sequence", kernel)


WRONG = {
    "boundaries": lambda q, k, v, lengths, scaling, window: (q, k, v, (sum(lengths),), scaling, window),
    "window": lambda q, k, v, lengths, scaling, window: (q, k, v, lengths, scaling, None),
    "window off by 8": lambda q, k, v, lengths, scaling, window: (q, k, v, lengths, scaling, window - 8),
    "scale": lambda q, k, v, lengths, scaling, window: (q, k, v, lengths, scaling * 1.2, window),
    "groups of heads": lambda q, k, v, lengths, scaling, window: (q, k.flip(1), v.flip(1), lengths, scaling, window),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_kernel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    tiny_models.save(tmp_path, tiny_models.config(**WINDOWED), dtype=torch.bfloat16)
    wrong_in_bf16(monkeypatch, WRONG[mistake])
    with pytest.raises(ModelError, match="kernels that train"):
        load(tmp_path)
