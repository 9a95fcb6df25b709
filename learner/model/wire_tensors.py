"""Weights and adapters as they are published: copies in host memory, in the types of the wire.

With several ranks every rank calls these functions, to help gather the shards; only rank 0 gets tensors. Each keeps
what it has published (`PublishedShards`), so that after the whole weights only changes are gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers.core_model_loading import revert_weight_conversion

from learner.model import lora
from learner.model.trained_model import TrainedModel
from learner.parallel.published_shards import unsigned_type
from learner.parallel.ranks import Order
from learner.parallel.sharding import gather, own_part
from services.errors import ModelError
from services.tensors import RawTensor
from services.weights.adapters import Adapter, pack
from services.weights.delta.plain import Flips, decode_flips, encode

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of floating types -> torch's types."""


def wire_tensors(model: TrainedModel) -> dict[str, RawTensor]:
    """The weights to publish: checkpoint names, tied weights once, adapters merged, rounded to nearest even.

    Every tensor is a copy, so training may go on. They are gathered one at a time. The dict is empty on other ranks.
    Each rank keeps its shards for `wire_changes`, but not those of a model with adapters.
    """
    model.ranks.send_order(Order.WEIGHTS)
    model.published.forget()
    keeps = not lora.adapters_of(model.module)
    found = ((name, _raw(name, tensor, model, keep=keeps)) for name, tensor in _checkpoint_tensors(model))
    return {name: raw for name, raw in found if raw is not None}


def wire_changes(model: TrainedModel) -> list[Flips]:
    """What has changed since the last `wire_tensors` or `wire_changes`, by the tensors' names; empty on other ranks.

    Each rank compares its own shards on its device; rank 0 receives positions and flipped bits.
    """
    model.ranks.send_order(Order.CHANGES)
    layout, own = [], []
    for name, tensor in sorted(_checkpoint_tensors(model), key=lambda item: item[0]):
        layout.append((name, tensor.numel(), unsigned_type(_wire_type(name, tensor, model)[1].itemsize)))
        part = own_part(tensor.detach(), is_leader=model.ranks.is_leader)
        if part is not None:
            found = model.published.advance(name, part[0])
            own.append(Flips(name, found.positions + part[1], found.bits))
    if model.ranks.size == 1:
        return own
    by_name: dict[str, list[Flips]] = {}
    for content in model.ranks.gather_bytes(encode(layout, own)):
        for flips in decode_flips(layout, content):
            by_name.setdefault(flips.name, []).append(flips)
    return [_joined(parts) for parts in by_name.values()]


def _joined(parts: list[Flips]) -> Flips:
    """One tensor's flips from several ranks, in the order of their rows."""
    parts = sorted(parts, key=lambda part: int(part.positions[0]))
    positions, bits = ([part.positions for part in parts], [part.bits for part in parts])
    return Flips(parts[0].name, np.concatenate(positions), np.concatenate(bits))


def _checkpoint_tensors(model: TrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors as `save_pretrained` would write them; of tied weights only the source."""
    tied = set(model.module.all_tied_weights_keys)
    adapters = lora.adapters_of(model.module)
    state = {
        lora.base_name(name): tensor
        for name, tensor in model.module.state_dict().items()
        if name not in tied and not lora.is_adapter(name)
    }
    named: dict[str, Any] = dict(revert_weight_conversion(model.module, state))
    if not adapters.keys() <= named.keys():
        missing = min(adapters.keys() - named.keys())
        raise ModelError(f"{missing} has an adapter and is not in the checkpoint", hint="leave it out of lora.targets")
    for name, tensor in named.items():
        adapter = adapters.get(name)
        yield name, tensor if adapter is None else lora.merge_adapter(tensor, adapter, _torch_dtype(name, model))


def wire_adapters(model: TrainedModel) -> dict[str, RawTensor] | None:
    """The adapters that `wire_tensors` merges; None without adapters, and on other ranks."""
    layers = lora.adapters_of(model.module)
    if not layers:
        return None
    model.ranks.send_order(Order.ADAPTERS)
    factors = {name: lora.factors(layer) for name, layer in layers.items()}
    if not model.ranks.is_leader:
        return None
    return pack({name: Adapter(b.cpu().numpy(), a.cpu().numpy(), scale) for name, (b, a, scale) in factors.items()})


def _raw(name: str, tensor: torch.Tensor, model: TrainedModel, *, keep: bool) -> RawTensor | None:
    """One tensor in its wire type, copied; None on other ranks. `keep`: this rank's part of it, for `wire_changes`."""
    dtype, target = _wire_type(name, tensor, model)
    rounded = tensor.detach().to(target, copy=True)
    if keep and (part := own_part(rounded, is_leader=model.ranks.is_leader)) is not None:
        model.published.keep(name, part[0].clone())
    copy = gather(rounded)
    if not model.ranks.is_leader:
        return None
    copy = copy.to("cpu").contiguous()
    return RawTensor(dtype, tuple(tensor.shape), copy.reshape(-1).view(torch.uint8).numpy())


def _wire_type(name: str, tensor: torch.Tensor, model: TrainedModel) -> tuple[str, torch.dtype]:
    """The type in which a tensor is published: safetensors' name, and torch's type."""
    if tensor.is_floating_point():
        return model.wire_dtype(name), _torch_dtype(name, model)
    return {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}[tensor.dtype], tensor.dtype


def _torch_dtype(name: str, model: TrainedModel) -> torch.dtype:
    """torch's type in which this floating tensor is published."""
    dtype = model.wire_dtype(name)
    if dtype not in TORCH_DTYPES:
        raise ModelError(f"{name} is stored as {dtype}", hint="train an unquantised model, or set model.wire_dtype")
    return TORCH_DTYPES[dtype]
