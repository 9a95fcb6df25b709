"""A model's sizes, from config.json and the headers of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from learner.model_folder.check import weight_files
from learner.model_folder.files import read_json
from services.errors import ModelError, WeightError
from services.tensors import ITEM_BYTES, read_header

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
"""Of a weight, by the names of types in config.json."""
NAMES: Mapping[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "vocabulary": ("vocab_size",),
    "mlp": ("moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "experts_of_token": ("num_experts_per_tok", "num_experts_per_token", "moe_top_k"),
    "key_heads": ("num_key_value_heads",),
    "head_size": ("head_dim",),
}
"""What is read of config.json -> the fields that families give it in. The first that is there counts."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes that memory follows; widths are numbers of values for each token."""

    parameters: int
    """Tied tensors once."""
    embedding: int
    """Parameters of the embedding."""
    head: int
    """Parameters of a head of its own; 0 when it is the embedding."""
    layers: int
    hidden: int
    vocabulary: int
    queries: int
    """Width of all query heads."""
    keys: int
    """Width of all key heads; values have the same."""
    mlp: int
    """Width within the MLP, of all experts that see a token."""
    published_bytes: int
    """Of one version."""

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        return (self.parameters - self.embedding - self.head) // self.layers

    @property
    def kv_values(self) -> int:
        """Keys and values that attention keeps of a token, over all layers."""
        return 2 * self.layers * self.keys


def read_shape(folder: Path) -> ModelShape | None:
    """Of the model in a folder; None when config.json does not give the sizes. ModelError for files that are broken."""
    config = read_json(folder / "config.json")
    shape = shape_of_config(config)
    if shape is None:
        return None
    elements, stored_bytes = _stored(folder)
    parameters = sum(elements.values())
    if not shape.head and any(name.endswith("lm_head.weight") for name in elements):  # files may hold a tied head, too
        parameters -= shape.embedding
    return replace(shape, parameters=parameters, published_bytes=stored_bytes)


def _stored(folder: Path) -> tuple[dict[str, int], int]:
    """Elements of each stored tensor, and the bytes of all."""
    elements, total_bytes = {}, 0
    for path in weight_files(folder):
        try:
            places = read_header(path).places
        except (WeightError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}", hint="copy or download the model again") from error
        for name, place in places.items():
            elements[name] = math.prod(place.shape)
            total_bytes += elements[name] * ITEM_BYTES.get(place.dtype, 1)
    return elements, total_bytes


def shape_of_config(config: Mapping[str, Any]) -> ModelShape | None:
    """By config.json alone: a gated MLP and attention without biases are assumed. None when a size is not in it."""
    config = config.get("text_config") or config
    found = {name: next((config[key] for key in keys if config.get(key)), None) for name, keys in NAMES.items()}
    sizes = {name: value for name, value in found.items() if isinstance(value, int)}
    if not sizes.keys() >= {"hidden", "layers", "heads", "vocabulary"}:
        return None
    hidden, layers, vocabulary = sizes["hidden"], sizes["layers"], sizes["vocabulary"]
    head_size = sizes.get("head_size") or hidden // sizes["heads"]
    queries, keys = sizes["heads"] * head_size, sizes.get("key_heads", sizes["heads"]) * head_size
    mlp, experts = sizes.get("mlp", 4 * hidden), sizes.get("experts", 1)
    layer = hidden * (2 * queries + 2 * keys) + 3 * hidden * mlp * experts + 2 * hidden
    embedding = vocabulary * hidden
    head = 0 if config.get("tie_word_embeddings", True) else embedding  # transformers' default
    parameters = layers * layer + embedding + head + hidden
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    return ModelShape(
        parameters=parameters,
        embedding=embedding,
        head=head,
        layers=layers,
        hidden=hidden,
        vocabulary=vocabulary,
        queries=queries,
        keys=keys,
        mlp=mlp * sizes.get("experts_of_token", 1),
        published_bytes=parameters * DTYPE_BYTES.get(dtype, 4),
    )
