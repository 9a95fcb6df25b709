"""Low-rank adapters on a frozen model (Hu et al., arXiv 2106.09685), by peft.

W' = W + (alpha / rank) B A, B [out, rank] zero at the start, A [rank, in] random. Only A and B have gradients and
moments and are in checkpoints. Engines serve W' like any other weights. W' is computed from A and B in fixed point, as
`services.weights.adapters` defines it, so that a mirror that receives only A and B computes the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from learner.config import LoraConfig
from learner.parallel.sharding import copy_to_shard, gather
from services.errors import ConfigError, ModelError
from services.weights.adapters import FRACTION_BITS

ADAPTER = "default"
BASE_INFIX = ".base_layer."
"""Stands between a layer's name and the name of its frozen weight."""
ADAPTER_INFIX = ".lora_"
"""Is in the name of every tensor of an adapter."""
BLOCK_ELEMENTS = 1 << 20
"""Elements merged at a time; their products take 8 bytes each."""


def add_adapters(module: PreTrainedModel, config: LoraConfig) -> None:
    """Freeze the model, which is on the meta device, and add adapters without values to its linear layers."""
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"lora.rank is {config.rank} and peft is not installed", hint="pip install sept[lora]"
        ) from error
    module.requires_grad_(False)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=list(config.targets) if config.targets else "all-linear",
    )
    try:
        peft.inject_adapter_in_model(settings, module, ADAPTER, low_cpu_mem_usage=True)
    except ValueError as error:  # no layer has that name, or peft has no adapter for its type
        raise ConfigError(
            f"lora.targets = {','.join(config.targets)} does not fit the model: {error}",
            hint="name linear layers as the model does, such as q_proj,v_proj, or leave it empty for all of them",
        ) from error
    if module.get_output_embeddings() in adapters_of(module).values():  # type: ignore[no-untyped-call]
        raise ConfigError(
            f"lora.targets = {','.join(config.targets)} names the head, whose weight is used without its forward",
            hint="leave it out: an adapter there would not be trained",
        )


def freeze_in(module: PreTrainedModel, dtype: torch.dtype) -> None:
    """Keep the frozen weights, without values yet, in this type: half of the memory where it is 16 bits."""
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def initialise_adapters(module: PreTrainedModel) -> None:
    """Give each rank its rows of A, random, and B, zero: the same on any number of ranks and after every restart.

    The random numbers are drawn as peft draws them, which fills A twice.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for layer in adapters_of(module).values():
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            whole_a, whole_b = (torch.nn.Linear(f.shape[1], f.shape[0], bias=False).weight for f in (a, b))
            copy_to_shard(a, torch.nn.init.kaiming_uniform_(whole_a, a=math.sqrt(5)))
            copy_to_shard(b, whole_b.zero_())


def adapters_of(module: PreTrainedModel) -> dict[str, Any]:
    """Checkpoint name of a weight -> the layer that holds it with its adapter."""
    wrapped = [
        name.removesuffix(BASE_INFIX[:-1]) for name, _ in module.named_modules() if name.endswith(BASE_INFIX[:-1])
    ]
    return {f"{name}.weight": module.get_submodule(name) for name in wrapped}


def adapter_bytes(module: PreTrainedModel) -> int:
    """Bytes of all adapters in float32; published they take half."""
    return sum(p.numel() * p.element_size() for name, p in module.named_parameters() if is_adapter(name))


def is_adapter(name: str) -> bool:
    """Whether the tensor of this name is part of an adapter."""
    return ADAPTER_INFIX in name


def base_name(name: str) -> str:
    """The name in the checkpoint of a tensor of the frozen model."""
    return name.replace(BASE_INFIX, ".")


def weight_of(factor: torch.nn.Module) -> torch.Tensor:
    """The float32 weight of a layer's A or B, this rank's rows of it."""
    weight: Any = factor.weight
    return weight  # type: ignore[no-any-return]


WeightOf = Callable[[torch.nn.Module], torch.Tensor]


def factors(layer: Any, weight_of: WeightOf = weight_of) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(B [out, rank], A [rank, in], scale) as published: int16, int16, float. Every rank must call it.

    `weight_of` finds A's and B's float32 weights; in the middle of a forward the layers hold copies.
    """
    b, b_step = _to_fixed_point(gather(weight_of(layer.lora_B[ADAPTER]).detach()))
    a, a_step = _to_fixed_point(gather(weight_of(layer.lora_A[ADAPTER]).detach()))
    return b, a, float(layer.scaling[ADAPTER]) * b_step * a_step


def _to_fixed_point(factor: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(int16, step): multiples of a power of two, at most 2**FRACTION_BITS of them."""
    peak = factor.abs().max()
    if not bool(torch.isfinite(peak)):
        raise ModelError(
            "an adapter holds numbers that are not finite: its weights have diverged",
            hint="start again from an earlier checkpoint with a lower training.learning_rate",
        )
    exponent = int(torch.frexp(peak).exponent) - FRACTION_BITS
    return (factor.double() * 2.0**-exponent).round().to(torch.int16), 2.0**exponent


def merge_adapter(
    weight: torch.Tensor, layer: Any, dtype: torch.dtype, weight_of: WeightOf = weight_of
) -> torch.Tensor:
    """W' of the layer whose frozen weight is `weight`, whole, in the published type. Every rank must call it.

    Computes the same bits as `services.weights.adapters.merge`, by blocks of rows.
    """
    b, a, scale = factors(layer, weight_of)
    frozen, a = gather(weight.detach()), a.double()
    rows = max(1, BLOCK_ELEMENTS // a.shape[1])
    blocks = zip(torch.split(b, rows), torch.split(frozen, rows), strict=True)
    return torch.cat(
        [(((left.double() @ a) * scale).float() + 0.0 + base.to(dtype).float()).to(dtype) for left, base in blocks]
    )
