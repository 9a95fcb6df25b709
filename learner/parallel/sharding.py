"""Weights, gradients and optimizer state spread over the ranks, each tensor by rows. Owns what is known of DTensors.

torch's FSDP2: the parameters of a decoder layer are gathered for its forward and backward only; gradients are summed
over the ranks as they are scattered. With one rank nothing is sharded and a tensor is its own part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard

from learner.parallel.ranks import Ranks


class Saved(Protocol):
    """A tensor to load: torch's own, or one in a checkpoint that is read as far as it is asked for."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, rows: Any) -> torch.Tensor: ...


def shard(root: torch.nn.Module, layer_names: frozenset[str], ranks: Ranks, device: torch.device) -> None:
    """Shard in place the layers of these class names, and `root`, whose forward uses the rest.

    The root gives its parameters back after its forward too: a copy that stays would miss weights loaded meanwhile.
    """
    if ranks.size == 1:
        return
    mesh = ranks.mesh(device)
    for module in [module for module in root.modules() if type(module).__name__ in layer_names] + [root]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        assert isinstance(module, FSDPModule)
        # The sum over the ranks, not their mean: the step divides by the tokens of all. gloo has no other reduction.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows, sharing their memory."""
    if not isinstance(tensor, DTensor):
        return tensor
    rows: torch.Tensor = tensor.to_local()
    return rows


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All rows, gathered; every rank must ask."""
    if not isinstance(tensor, DTensor):
        return tensor
    gathered: torch.Tensor = tensor.full_tensor()
    return gathered


def first_row(tensor: torch.Tensor) -> int:
    """Where this rank's rows begin in the whole tensor: rank * ceil(rows / ranks), as FSDP2 cuts (torch.chunk)."""
    if not isinstance(tensor, DTensor):
        return 0
    assert tensor.placements == (Shard(0),), "FSDP2 shards by rows"
    mesh = tensor.device_mesh
    return min(mesh.get_local_rank() * -(-tensor.shape[0] // mesh.size()), tensor.shape[0])


def copy_rows(target: torch.Tensor, saved: Saved) -> None:
    """Fill this rank's rows of `target`."""
    rows, start = local(target), first_row(target)
    with torch.no_grad():
        rows.copy_(saved[start : start + rows.shape[0]] if rows.ndim else saved[...])
