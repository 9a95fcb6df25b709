"""Shards weights, gradients and optimizer state over the ranks, each tensor by rows; all handling of DTensors is here.

By torch's FSDP2: the parameters of a decoder layer are gathered for its forward and backward only, in the type of the
computation, and gradients are summed over the ranks in float32 as they are scattered. The shards are the float32 master
weights. One rank that computes in float32 needs none of that: nothing is sharded, and a tensor is its own shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor.placement_types import Replicate, Shard

from learner.parallel.ranks import Ranks


class SavedRows(Protocol):
    """A tensor to load rows from: a torch tensor, or one in a checkpoint, of which only the requested rows are read."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, rows: Any) -> torch.Tensor: ...


def shard_module(
    groups: Sequence[torch.nn.Module], ranks: Ranks, device: torch.device, compute_dtype: torch.dtype = torch.float32
) -> None:
    """Shard in place the modules of `sharding_groups`, to be gathered in `compute_dtype`.

    Tensors on the meta device stay there: `to_empty` gives them memory for this rank's rows.

    The root is resharded after its forward too: a gathered copy that stays would miss weights loaded in between.
    """
    if ranks.size == 1 and compute_dtype == torch.float32:
        return
    mesh = _device_mesh(ranks, device)
    rounded = compute_dtype != torch.float32
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype if rounded else None,
        reduce_dtype=torch.float32 if rounded else None,
        cast_forward_inputs=False,  # the embedding's type is that of its weight, and so is that of what follows
    )
    for module in groups:
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        assert isinstance(module, FSDPModule)
        if device.type == "cpu":
            module.set_custom_all_gather(_GatherInPlace())  # type: ignore[arg-type]  # torch does not export the type
        # The sum over the ranks, not their mean: the step divides by the tokens of all. gloo has no other reduction.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


class _GatherInPlace:
    """FSDP2's all-gather by broadcasts: gloo's own receives into a copy of the whole output first.

    Measured for 128 MiB on two ranks: 130 MiB more at the peak, and 1 MiB.
    """

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work:
        """The last broadcast, which is done as all others: without it FSDP2 keeps the output until the next gather."""
        parts = output_tensor.chunk(group.size())
        own = parts[group.rank()]
        if own.data_ptr() != input_tensor.data_ptr():
            own.copy_(input_tensor)
        works = [dist.broadcast(part, group=group, group_src=rank, async_op=True) for rank, part in enumerate(parts)]
        for work in works:
            work.wait()
        last: dist.Work = works[-1]
        return last


def _device_mesh(ranks: Ranks, device: torch.device) -> DeviceMesh:
    """The ranks' mesh; a process that is the only rank makes a group of its own, over which nothing is sent."""
    if ranks.size == 1 and not dist.is_initialized():
        dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return ranks.device_mesh(device)


def sharding_groups(root: torch.nn.Module, layer_names: frozenset[str]) -> list[torch.nn.Module]:
    """The modules whose parameters are gathered together: the layers of these class names, every other module with
    parameters of its own, and last `root`, which has what several modules share, as tied embeddings do."""
    layers = [module for module in root.modules() if type(module).__name__ in layer_names]
    inside = {part for layer in layers for part in layer.modules()}
    others = [module for module in root.modules() if module not in inside and module is not root]
    owned = {module: list(module.parameters(recurse=False)) for module in others}
    owners = Counter(parameter for parameters in owned.values() for parameter in parameters)
    alone = [m for m, parameters in owned.items() if parameters and all(owners[p] == 1 for p in parameters)]
    return [*layers, *(m for m in alone if not list(m.children())), root]


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of the tensor, sharing their memory."""
    if not isinstance(tensor, DTensor):
        return tensor
    rows: torch.Tensor = tensor.to_local()
    return rows


def sharded_like(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`rows`, which may be in host memory, as this rank's part of a tensor that is sharded as `tensor` is."""
    if not isinstance(tensor, DTensor):
        return rows
    local = local_shard(tensor)
    shape = tensor.shape
    if rows.shape != local.shape:  # scales of blocks, of which every rank has an equal share
        shape = torch.Size([rows.shape[0] * (tensor.shape[0] // local.shape[0])])
    meta = TensorMeta(shape, torch.empty(shape, device="meta").stride(), rows.dtype)
    spec = DTensorSpec(tensor.device_mesh, tensor.placements, tensor_meta=meta)
    return DTensor(rows, spec, requires_grad=False)  # type: ignore[no-untyped-call]


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor. A collective operation: every rank must call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    if tensor.device_mesh.size() == 1:
        return local_shard(tensor)
    gathered: torch.Tensor = tensor.full_tensor()
    return gathered


def first_local_row(tensor: torch.Tensor) -> int:
    """Index in the whole tensor of this rank's first row: shard * ceil(rows / shards), as FSDP2 splits them."""
    if not isinstance(tensor, DTensor):
        return 0
    *replicated, sharded = tensor.placements
    assert sharded == Shard(0) and replicated in ([], [Replicate()]), "FSDP2 shards by rows, within a node or over all"
    mesh, dimension = tensor.device_mesh, len(replicated)
    return min(mesh.get_local_rank(dimension) * -(-tensor.shape[0] // mesh.size(dimension)), tensor.shape[0])


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
