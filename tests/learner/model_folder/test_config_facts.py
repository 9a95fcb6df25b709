"""What is read from configurations of many families."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import (
    DeepseekV3Config,
    FalconH1Config,
    Gemma3TextConfig,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from learner.model_folder.config_facts import (
    attention_layers,
    attention_width,
    expert_count,
    experts_of_a_token,
    lengths_of_change,
    remove_randomness,
)


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64} | more


@pytest.mark.parametrize(
    ("config", "lengths"),
    [
        (LlamaConfig(), ()),
        (MistralConfig(sliding_window=16), (16,)),
        (MistralConfig(sliding_window=2000), ()),
        (MistralConfig(sliding_window=None), ()),
        (Gemma3TextConfig(sliding_window=512), (512,)),
        (Qwen2Config(use_sliding_window=True, sliding_window=32, max_window_layers=1), (32,)),
        (Qwen2Config(use_sliding_window=False, sliding_window=32), ()),
        (LlamaConfig(max_position_embeddings=128, rope_parameters=rope("yarn")), ()),
        (LlamaConfig(max_position_embeddings=100, rope_parameters=rope("dynamic")), (64,)),
        (LlamaConfig(max_position_embeddings=100, rope_parameters={"rope_type": "dynamic", "factor": 2.0}), (100,)),
        (Llama4TextConfig(attention_chunk_size=300, floor_scale=400), (300, 400)),
        (
            Phi3Config(
                original_max_position_embeddings=64,
                pad_token_id=0,
                rope_parameters=rope("longrope", short_factor=[1.0] * 48, long_factor=[2.0] * 48),
            ),
            (64,),
        ),
    ],
)
def test_the_lengths_at_which_a_model_changes_are_those_that_a_run_can_reach(
    config: PreTrainedConfig, lengths: tuple[int, ...]
) -> None:
    assert lengths_of_change(config, 1000) == lengths


def test_no_rate_of_randomness_is_left() -> None:
    config = OPTConfig(dropout=0.1, attention_dropout=0.2, layerdrop=0.3)
    remove_randomness(config)
    assert (config.dropout, config.attention_dropout, config.layerdrop) == (0.0, 0.0, 0.0)
    experts = MixtralConfig(router_jitter_noise=0.1, rms_norm_eps=1e-5)
    remove_randomness(experts)
    assert (experts.router_jitter_noise, experts.rms_norm_eps) == (0.0, 1e-5)


def test_experts_have_many_names() -> None:
    counts = [
        (expert_count(config), experts_of_a_token(config))
        for config in (
            MixtralConfig(num_local_experts=6, num_experts_per_tok=2),
            DeepseekV3Config(n_routed_experts=32, num_experts_per_tok=4),
            LlamaConfig(),
        )
    ]
    assert counts == [(6, 2), (32, 4), (1, 1)]


def test_layers_without_attention_do_not_count_as_such() -> None:
    types = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
    assert attention_layers(Qwen3NextConfig(num_hidden_layers=4, layer_types=types)) == 1
    assert attention_layers(GPT2Config(n_layer=5)) == 5
    assert attention_layers(FalconH1Config(num_hidden_layers=3)) == 3
    assert attention_layers(Mamba2Config()) == attention_width(Mamba2Config()) == 0


def test_latent_attention_has_wider_scores_than_values() -> None:
    config = DeepseekV3Config(num_attention_heads=2, qk_nope_head_dim=24, qk_rope_head_dim=8, v_head_dim=16)
    assert attention_width(config) == 2 * (24 + 8 + 16)
