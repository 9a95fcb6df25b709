"""Tensors by rows: with one rank nothing is sharded, and saved rows land where they belong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learner.parallel.ranks import Ranks
from learner.parallel.sharding import copy_to_shard, first_local_row, gather, local_shard, shard_module


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
    shard_module(module, frozenset({"Linear"}), Ranks(), torch.device("cpu"))
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
