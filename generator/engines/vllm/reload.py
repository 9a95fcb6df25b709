"""Loads a model so that its weights can be loaded again. Runs in vLLM's worker processes only.

Layers compute with what they derive from loaded weights: packed copies, kernels that hold them. Some derive it only
the first time (on CPU, experts are packed once and a second load leaves unpacked values in packed storage). So the
loader notes the state of every layer's method before anything is derived, and a reload begins from that state again.
Where CUDA graphs have captured what was derived, vLLM's own reload keeps its addresses and has to renew it in place.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from vllm.config import ModelConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from generator.engines.vllm.handover import BACKEND

_REGISTRIES = ("_parameters", "_buffers", "_modules")
"""Attributes of a module that are changed in place."""
_before_loading: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()
"""Layer -> attributes of its method (`quant_method`, which unquantised layers have too) before it saw weights."""


@register_model_loader(BACKEND)
class Loader(DefaultModelLoader):  # type: ignore[misc]  # vLLM is untyped here
    """vLLM's loader of safetensors, which also notes what layers are before they derive anything from weights."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(dataclasses.replace(load_config, load_format="safetensors"))

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        for layer in model.modules():
            if hasattr(layer, "quant_method"):
                _before_loading[layer] = _state(layer.quant_method)
        super().load_weights(model, model_config)


def reload_weights(model: nn.Module, model_config: ModelConfig, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Load these tensors, by their checkpoint names, and renew all that their layers derive from them."""
    derived = _forget_derived(model) if model_config.enforce_eager else {}
    initialize_layerwise_reload(model)
    model.load_weights(tensors)  # type: ignore[operator]
    finalize_layerwise_reload(model, model_config)
    for layer, state in derived.items():
        if _state(layer.quant_method) == _before_loading[layer]:  # none of its weights was among the tensors
            _set_state(layer.quant_method, state)
    _repack_tied_heads(model)


def as_before_loading(layer: Any) -> Any:
    """A copy of the layer with tensors of the shapes that it loads, whose values nobody has set."""
    probe, method = copy.copy(layer), copy.copy(layer.quant_method)
    _set_state(method, _before_loading[layer])
    _set_state(probe, _state(layer))
    probe.quant_method = method
    shapes, _buffers = get_layerwise_info(layer).restore_metadata
    for name, tensor in shapes.items():
        probe._parameters[name] = nn.Parameter(torch.empty_like(tensor, device="cpu"), requires_grad=False)
    return probe


def _state(thing: Any) -> dict[str, Any]:
    """Its attributes; of a module, the tensors and modules that it holds are attributes too."""
    return {name: dict(value) if name in _REGISTRIES else value for name, value in vars(thing).items()}


def _set_state(thing: Any, state: dict[str, Any]) -> None:
    vars(thing).clear()
    vars(thing).update({name: dict(value) if name in _REGISTRIES else value for name, value in state.items()})


def _forget_derived(model: nn.Module) -> dict[Any, dict[str, Any]]:
    """Set every layer's method back to its state before loading; the layers with the state that they had."""
    derived = {}
    for layer in model.modules():
        if layer in _before_loading:
            derived[layer] = _state(layer.quant_method)
            _set_state(layer.quant_method, _before_loading[layer])
    return derived


def _repack_tied_heads(model: nn.Module) -> None:
    """Recompute what output layers derive from the embedding whose weight they share.

    No weight is loaded into such a head, so the layerwise reload skips it, and its packed copy (on CPU) would still
    compute with the old weights.
    """
    embeddings = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    embedding_weights = {id(module.weight) for module in embeddings if not isinstance(module, ParallelLMHead)}
    for module in embeddings:
        unquantised = isinstance(module.quant_method, UnquantizedEmbeddingMethod)
        if isinstance(module, ParallelLMHead) and unquantised and id(module.weight) in embedding_weights:
            module.quant_method.process_weights_after_loading(module)
