"""What a model's configuration says about how it computes: experts, attention, randomness, lengths of change.

Families of models have different names for the same thing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

_RANDOM = re.compile(r"drop|jitter|noise")
"""In the names of settings that make a forward random in training: attention_dropout, resid_pdrop, layerdrop,
router_jitter_noise, ..."""
_LENGTHS = re.compile(r"(window|window_size|attention_chunk_size|floor_scale)$")
"""In the names of settings that hold a number of tokens after which attention is another one."""
_FIXED_ROPE_TYPES = ("default", "linear", "yarn", "llama3", "proportional")
"""Rotary embeddings whose frequencies do not depend on the length of a sequence."""
_ORIGINAL_LENGTH = "original_max_position_embeddings"
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_OF_A_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_top_k",
    "moe_topk",
    "top_k_experts",
    "moe_k",
)


def head_size(config: Any) -> int:
    """Size of an attention head. Most text configs of transformers give only hidden size and number of heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def attention_layers(config: Any) -> int:
    """Layers whose tokens attend to all tokens before them; those with a recurrent state do not."""
    if not getattr(config, "num_attention_heads", None):
        return 0
    types = getattr(config, "layer_types", None) or ["attention"] * config.num_hidden_layers
    return sum(("attention" in each and not each.startswith("linear")) or each == "hybrid" for each in types)


def attention_width(config: Any) -> int:
    """Multiplications per pair of tokens and layer: scores and weighted values of all heads."""
    if not getattr(config, "num_attention_heads", None):
        return 0
    nope, value = getattr(config, "qk_nope_head_dim", None), getattr(config, "v_head_dim", None)
    scores = nope + config.qk_rope_head_dim if nope else head_size(config)  # latent attention of DeepSeek
    return int(config.num_attention_heads * (scores + (value or scores)))


def expert_count(config: Any) -> int:
    """Experts of a layer; 1 for a model without."""
    return _first(config, _EXPERT_COUNTS) or 1


def experts_of_a_token(config: Any) -> int:
    """Experts of a layer that a token is sent to; all where the configuration has no number."""
    return _first(config, _EXPERTS_OF_A_TOKEN) or expert_count(config)


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if type(value := getattr(config, name, None)) is int), None)


def remove_randomness(config: PreTrainedConfig) -> None:
    """Set every rate of dropout, layer dropping and jitter to 0, also those of configurations within this one.

    The model that samples is not random in this way, so the one that is trained must not be either.
    """
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            remove_randomness(value)
        elif isinstance(value, float) and _RANDOM.search(name):
            setattr(config, name, 0.0)


def lengths_of_change(config: PreTrainedConfig, longest: int) -> tuple[int, ...]:
    """Numbers of tokens, ascending and below `longest`, after which the model computes attention or positions in
    another way: windows, chunks, and rotary embeddings that are stretched for long sequences.
    """
    text = config.get_text_config()
    found = {*_window_lengths(text), *_rope_lengths(text)}
    return tuple(sorted(length for length in found if 0 < length < longest))


def _window_lengths(config: PreTrainedConfig) -> Iterator[int]:
    if getattr(config, "use_sliding_window", True):
        yield from (value for name, value in vars(config).items() if type(value) is int and _LENGTHS.search(name))


def _rope_lengths(config: PreTrainedConfig) -> Iterator[int]:
    parameters: Any = getattr(config, "rope_parameters", None) or {}
    of_layers = [each for each in parameters.values() if isinstance(each, dict)]  # one for each type of layer
    for rope in of_layers or [parameters]:
        # beta of Llama 4's scaling: queries grow with their position
        if rope.get("rope_type", "default") not in _FIXED_ROPE_TYPES or any("beta" in n and "scal" in n for n in rope):
            length = rope.get(_ORIGINAL_LENGTH) or getattr(config, "max_position_embeddings", None)
            yield int(length or 0)
