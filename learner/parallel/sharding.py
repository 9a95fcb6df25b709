"""Shards weights, gradients and optimizer state over the ranks, each tensor by rows; all handling of DTensors is here.

By torch's FSDP2: the parameters of a decoder layer are gathered for its forward and backward only, and gradients are
summed over the ranks as they are scattered. With one rank nothing is sharded, and a tensor is its own shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Replicate, Shard

from learner.parallel.ranks import Ranks


class SavedRows(Protocol):
    """A tensor to load rows from: a torch tensor, or one in a checkpoint, of which only the requested rows are read."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, rows: Any) -> torch.Tensor: ...


def shard_module(
    root: torch.nn.Module,
    layer_names: frozenset[str],
    ranks: Ranks,
    device: torch.device,
    *,
    forwards: Sequence[str] = (),
) -> None:
    """Shard in place the layers of these class names, and `root`, which holds the remaining parameters.

    Tensors on the meta device stay there: `to_empty` gives them memory for this rank's rows. `forwards` are methods of
    `root` that compute with the weights besides its forward.

    The root is resharded after its forward too: a gathered copy that stays would miss weights loaded in between.
    """
    if ranks.size == 1:
        return
    mesh = ranks.device_mesh(device)
    for module in [module for module in root.modules() if type(module).__name__ in layer_names] + [root]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        assert isinstance(module, FSDPModule)
        # The sum over the ranks, not their mean: the step divides by the tokens of all. gloo has no other reduction.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    for name in forwards:
        register_fsdp_forward_method(root, name)


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of the tensor, sharing their memory."""
    if not isinstance(tensor, DTensor):
        return tensor
    rows: torch.Tensor = tensor.to_local()
    return rows


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor. A collective operation: every rank must call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    gathered: torch.Tensor = tensor.full_tensor()
    return gathered


def first_local_row(tensor: torch.Tensor) -> int:
    """Index in the whole tensor of this rank's first row: rank * ceil(rows / ranks), as FSDP2 splits (torch.chunk)."""
    if not isinstance(tensor, DTensor):
        return 0
    assert tensor.placements == (Shard(0),), "FSDP2 shards by rows"
    mesh = tensor.device_mesh
    return min(mesh.get_local_rank() * -(-tensor.shape[0] // mesh.size()), tensor.shape[0])


def own_part(tensor: torch.Tensor, *, is_leader: bool) -> tuple[torch.Tensor, int] | None:
    """(part, its first flat element) of the tensor that this rank answers for, or None; together they cover it once.

    What is not sharded by rows is the leader's. Every rank must call it, as it may gather.
    """
    if isinstance(tensor, DTensor) and Shard(0) in tensor.placements:
        mesh, placements = tensor.device_mesh, tensor.placements
        if all(placement in (Shard(0), Replicate()) for placement in placements):
            copies = [mesh.get_local_rank(dim) for dim, placement in enumerate(placements) if placement == Replicate()]
            row = tensor.numel() // tensor.shape[0]
            return None if any(copies) else (local_shard(tensor), first_local_row(tensor) * row)
    whole = gather(tensor)
    return (whole, 0) if is_leader else None


def copy_to_shard(target: torch.Tensor, saved: SavedRows) -> None:
    """Fill this rank's rows of `target` from `saved`."""
    rows, start = local_shard(target), first_local_row(target)
    with torch.no_grad():
        rows.copy_(saved[start : start + rows.shape[0]] if rows.ndim else saved[...])
