"""The weights that a model of vLLM computes with, under their checkpoint names. Runs in its worker processes only."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from generator.engines.vllm.reload import as_before_loading

PACKING_LAYERS = (LinearBase, ParallelLMHead)
"""Layers that may compute with a packed copy of their weight."""
DIGIT = 256
"""Integers below it are exact in every type that engines compute in."""


def served_tensors(model: nn.Module, published: Container[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights in checkpoint coordinates: padding is cut off, and layers that vLLM fuses are split, unless the
    checkpoint has them fused under the same name (`published`: its names), as Phi-3's and GLM-4's do. A tensor that two
    layers share is yielded once for each of them. Works without tensor parallelism only.
    """
    fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    first_paths: dict[int, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, RoutedExperts):
            yield from _expert_tensors(path, module)
            continue
        for name, parameter in module.named_parameters(recurse=False):
            packed = name == "weight" and isinstance(module, PACKING_LAYERS)
            tensor = _effective_weight(module, parameter) if packed else parameter.data
            if isinstance(module, VocabParallelEmbedding):
                tensor = tensor[: module.org_vocab_size]
            prefix, _, leaf = first_paths.setdefault(id(parameter), path).rpartition(".")
            whole = f"{prefix}.{leaf}.{name}".lstrip(".")
            if leaf in fused and whole not in published:
                parts = torch.split(tensor, module.output_sizes, dim=0)
                for part_leaf, part in zip(fused[leaf], parts, strict=True):
                    yield f"{prefix}.{part_leaf}.{name}", part
            else:
                yield whole, tensor


def _effective_weight(layer: Any, weight: nn.Parameter) -> torch.Tensor:
    """[out, in] weight that the layer multiplies by, also where it is packed: the layer's output for the identity.

    Exact, except for the sign of zeros.
    """
    width = layer.input_size if isinstance(layer, LinearBase) else layer.embedding_dim
    identity = torch.eye(width, dtype=weight.dtype, device=weight.device)
    output: torch.Tensor = layer.quant_method.apply(layer, identity, None)
    return output.T


def _expert_tensors(path: str, layer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The matrices of every expert, which vLLM keeps in two tensors: gates above up-projections [E, 2I, H], and
    down-projections [E, H, I].
    """
    prefix = path.removesuffix(".routed_experts")
    stored = _before_packing(layer)
    for expert, (gate_up, down) in enumerate(zip(stored["w13_weight"], stored["w2_weight"], strict=True)):
        parts = {layer.ckpt_down_proj_name: down, layer.ckpt_gate_proj_name: gate_up}
        if layer.ckpt_up_proj_name is not None:
            gate, up = gate_up.chunk(2)
            parts |= {layer.ckpt_gate_proj_name: gate, layer.ckpt_up_proj_name: up}
        for name, part in parts.items():
            yield f"{prefix}.{expert}.{name}.weight", part


def _before_packing(layer: Any) -> dict[str, torch.Tensor]:
    """The layer's tensors as they were before it packed them.

    Packing moves elements and adds zeros, in an order of its own for every processor. To find the order, a copy of the
    layer packs the elements' own numbers, digit by digit.
    """
    found = {}
    for name, packed in layer.named_parameters(recurse=False):
        place = torch.zeros(packed.numel(), dtype=torch.int64)
        scale = 1
        while True:
            probe = as_before_loading(layer)
            shape = probe._parameters[name].shape
            numbers = torch.arange(1, 1 + shape.numel()).view(shape)  # 0 is what packing adds
            for other, parameter in probe._parameters.items():
                digits = (numbers // scale % DIGIT) if other == name else torch.zeros(parameter.shape)
                parameter.data = digits.to(packed.dtype).to(packed.device)
            probe.quant_method.process_weights_after_loading(probe)
            place += probe._parameters[name].data.reshape(-1).cpu().to(torch.int64) * scale
            scale *= DIGIT
            if scale > shape.numel():
                break
        whole = torch.zeros(1 + shape.numel(), dtype=packed.dtype)
        whole[place] = packed.data.reshape(-1).cpu()
        found[name] = whole[1:].view(shape)
    return found
