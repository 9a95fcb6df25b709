"""Weights and adapters as they are published: copies in host memory, in the types of the wire.

With several ranks every rank calls these functions, to help gather the shards; only rank 0 gets tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from learner.model import lora
from learner.model.trained_model import TrainedModel
from learner.parallel.ranks import Order
from learner.parallel.sharding import gather
from services.errors import ModelError
from services.tensors import RawTensor
from services.weights.adapters import Adapter, pack

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of floating types -> torch's types."""


def wire_tensors(model: TrainedModel) -> dict[str, RawTensor]:
    """The weights to publish: checkpoint names, tied weights once, adapters merged, rounded to nearest even.

    Every tensor is a copy, so training may go on. They are gathered one at a time. The dict is empty on other ranks.
    """
    model.ranks.send_order(Order.WEIGHTS)
    return {name: raw for name, tensor in _checkpoint_tensors(model) if (raw := _raw(name, tensor, model)) is not None}


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


def _raw(name: str, tensor: torch.Tensor, model: TrainedModel) -> RawTensor | None:
    """One tensor in its wire type, copied exactly once; None on other ranks."""
    if tensor.is_floating_point():
        dtype, target = model.wire_dtype(name), _torch_dtype(name, model)
    else:
        dtype = {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}[tensor.dtype]
        target = tensor.dtype
    copy = gather(tensor.detach().to(target, copy=True))
    if not model.ranks.is_leader:
        return None
    copy = copy.to("cpu").contiguous()
    return RawTensor(dtype, tuple(tensor.shape), copy.reshape(-1).view(torch.uint8).numpy())


def _torch_dtype(name: str, model: TrainedModel) -> torch.dtype:
    """torch's type in which this floating tensor is published."""
    dtype = model.wire_dtype(name)
    if dtype not in TORCH_DTYPES:
        raise ModelError(f"{name} is stored as {dtype}", hint="train an unquantised model, or set model.wire_dtype")
    return TORCH_DTYPES[dtype]
