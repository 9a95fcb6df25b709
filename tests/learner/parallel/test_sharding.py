"""Tensors by rows: what one rank makes of them, and weights that are gathered in bf16, as on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.config import LoraConfig
from learner.model.canary import compute_canaries
from learner.model.trained_model import TrainedModel
from learner.parallel.ranks import Ranks
from learner.parallel.sharding import copy_to_shard, first_local_row, gather, local_shard, shard_module
from learner.training.checkpoint import Checkpoints
from learner.training.trainer import Trainer
from tests.support import tiny_models
from tests.support.ranks_together import made, together

ADAPTERS = LoraConfig(rank=2)


def train(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Writes down losses and the types of the weights."""
    losses = [trainer.train_round(tiny_models.samples()).loss for _ in range(3)]
    types = sorted({f"{p.dtype} {'trained' if p.requires_grad else 'frozen'}" for p in model.module.parameters()})
    found = {"losses": losses, "types": types}
    (folder / f"{model.ranks.size} {model.compute_dtype}.json").write_text(json.dumps(found))


def outcome(folder: Path, ranks: int, compute_dtype: torch.dtype, adapters: LoraConfig | None = None) -> dict[str, Any]:
    config = tiny_models.training(ranks=ranks)
    if ranks == 1:
        train(folder, *made(folder, config, adapters, compute_dtype=compute_dtype))
    else:
        done = together(train, folder, config, adapters, compute_dtype=compute_dtype)
        assert done == [0] * ranks
    found: dict[str, Any] = json.loads((folder / f"{ranks} {compute_dtype}.json").read_text())
    return found


@pytest.mark.parametrize(("tied", "adapters"), [(True, None), (False, None), (True, ADAPTERS)])
def test_in_bf16_any_number_of_ranks_trains_nearly_what_float32_trains(
    tmp_path: Path, one_rank_group: None, tied: bool, adapters: LoraConfig | None
) -> None:
    configuration = tiny_models.config(tie_word_embeddings=tied)
    tiny_models.save(tmp_path / "model", configuration, dtype=torch.bfloat16)
    exact = outcome(tmp_path, 1, torch.float32, adapters)
    one, two = (outcome(tmp_path, ranks, torch.bfloat16, adapters) for ranks in (1, 2))
    assert one["losses"] == pytest.approx(exact["losses"], rel=0.02)
    assert two["losses"] == pytest.approx(one["losses"], rel=0.005)
    trained = ["torch.float32 trained"]
    assert exact["types"] == (trained if adapters is None else ["torch.float32 frozen", *trained])
    assert one["types"] == two["types"] == (trained if adapters is None else ["torch.bfloat16 frozen", *trained])


def write_canaries(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Of adapters that are not zero; the same in every type of computation."""
    for number, (name, parameter) in enumerate(model.module.named_parameters()):
        if "lora_B" in name:
            torch.manual_seed(number)
            copy_to_shard(parameter, 0.1 * torch.randn(parameter.shape))
    if model.ranks.is_leader:
        canaries = [canary.log_probs for canary in compute_canaries(model, 2)]
        (folder / f"{model.ranks.size} {model.compute_dtype}.json").write_text(json.dumps(canaries))


@pytest.mark.parametrize("wire", [torch.bfloat16, torch.float32])
def test_canaries_are_exact_whatever_type_the_forward_computes_in(
    tmp_path: Path, one_rank_group: None, wire: torch.dtype
) -> None:
    """Float32 weights are published exactly, though no forward of training sees them."""
    tiny_models.save(tmp_path / "model", dtype=wire)
    exact = canaries_of(tmp_path, 1, torch.float32)
    for ranks in (1, 2):
        rounded = canaries_of(tmp_path, ranks, torch.bfloat16)
        torch.testing.assert_close(torch.tensor(rounded), torch.tensor(exact), rtol=0, atol=1e-5)


def canaries_of(folder: Path, ranks: int, compute_dtype: torch.dtype) -> list[list[float]]:
    config = tiny_models.training(ranks=ranks)
    if ranks == 1:
        write_canaries(folder, *made(folder, config, ADAPTERS, compute_dtype=compute_dtype))
    else:
        done = together(write_canaries, folder, config, ADAPTERS, on_every_rank=True, compute_dtype=compute_dtype)
        assert done == [0] * ranks
    found: list[list[float]] = json.loads((folder / f"{ranks} {compute_dtype}.json").read_text())
    return found


class Asked:
    """A saved tensor that notes which rows are read."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.rows: list[Any] = []

    def __getitem__(self, rows: Any) -> torch.Tensor:
        self.rows.append(rows)
        return self.tensor[rows]


def test_with_one_rank_a_tensor_is_its_own_shard() -> None:
    tensor = torch.arange(6.0).reshape(3, 2)
    assert local_shard(tensor) is tensor
    assert gather(tensor) is tensor
    assert first_local_row(tensor) == 0


def test_with_one_rank_a_module_stays_as_it_is() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3))
    before = list(module.parameters())
    shard_module([*module, module], Ranks(), torch.device("cpu"))
    assert type(module) is torch.nn.Sequential
    assert all(after is parameter for after, parameter in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("saved", [torch.arange(6.0).reshape(3, 2), torch.tensor(4.0)], ids=["rows", "scalar"])
def test_saved_rows_are_copied_into_the_weights_in_place(saved: torch.Tensor) -> None:
    target = torch.nn.Parameter(torch.zeros_like(saved))
    place, asked = target.data_ptr(), Asked(saved)
    copy_to_shard(target, asked)
    assert torch.equal(target, saved)
    assert (target.data_ptr(), target.grad_fn) == (place, None)
    assert asked.rows == ([slice(0, 3)] if saved.ndim else [...]), "only what is needed"
