"""Sizes of models, by their files and by config.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from learner.memory.model_shape import read_shape, shape_of_config
from services.errors import ModelError
from tests.support import tiny_models
from tests.support.model_configs import CONFIGS


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_sizes_come_from_the_headers(tmp_path: Path, family: tiny_models.Family) -> None:
    folder = tiny_models.save(tmp_path / "saved", tiny_models.config(family), dtype=torch.bfloat16)
    model = tiny_models.load(tmp_path / "loaded", tiny_models.config(family)).module
    shape = read_shape(folder)
    assert shape is not None
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.published_bytes == 2 * shape.parameters
    config = model.config
    head_size = config.hidden_size // config.num_attention_heads
    assert shape.kv_values == 2 * config.num_hidden_layers * config.num_key_value_heads * head_size
    assert bool(shape.head) == (family == "llama")


def test_a_head_that_files_hold_although_it_is_tied_counts_once(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path)
    once = read_shape(folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    twice = read_shape(folder)
    assert once is not None and twice is not None
    assert once.parameters == twice.parameters


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen2.5-0.5B", 0.494),
        ("Qwen2.5-Math-1.5B", 1.544),
        ("Qwen2.5-Math-7B", 7.616),
        ("Qwen2.5-32B", 32.76),
        ("deepseek-math-7b-instruct", 6.91),
        ("Llama-3.1-8B-Instruct", 8.03),
    ],
)
def test_config_json_alone_gives_the_sizes_that_are_published(name: str, billions: float) -> None:
    shape = shape_of_config(CONFIGS[name])
    assert shape is not None
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=2e-3)
    assert shape.published_bytes == 2 * shape.parameters


def test_experts_count_in_the_weights_and_those_of_a_token_in_its_activations() -> None:
    mixture = CONFIGS["Llama-3.1-8B-Instruct"] | {"num_local_experts": 8, "num_experts_per_tok": 2}
    dense, shape = shape_of_config(CONFIGS["Llama-3.1-8B-Instruct"]), shape_of_config(mixture)
    assert dense is not None and shape is not None
    assert shape.mlp == 2 * dense.mlp
    assert shape.parameters - dense.parameters == 32 * 7 * 3 * 4096 * 14_336


@pytest.mark.parametrize("config", [{}, {"model_type": "rwkv", "hidden_size": 5}, {"hidden_size": "x"}])
def test_a_family_whose_sizes_are_not_known_is_no_error(config: dict[str, Any]) -> None:
    assert shape_of_config(config) is None


def test_sizes_of_a_text_model_within_another_are_found() -> None:
    assert shape_of_config({"text_config": CONFIGS["Qwen2.5-0.5B"]}) == shape_of_config(CONFIGS["Qwen2.5-0.5B"])


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has neither model\.safetensors nor"):
        read_shape(folder)
