"""What a run needs of memory, by arithmetic that can be checked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deploy.doctor.memory_estimate import Footprint, Room, Shape, footprint, room, shape_of
from deploy.load_settings import load
from deploy.settings import Settings
from services.errors import ModelError
from tests.support import tiny_models

SEVEN_B = Shape(parameters=7 * 10**9, published_bytes=14 * 10**9, kv_values_per_token=2 * 32 * 8 * 128)


def settings(*sets: str) -> Settings:
    return load(None, list(sets), environ={})


def test_sizes_come_from_the_headers(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path, tiny_models.config("qwen2"), dtype=torch.bfloat16)
    model = tiny_models.load(tmp_path / "again").module
    config = model.config.get_text_config()
    shape = shape_of(folder)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.published_bytes == 2 * shape.parameters
    head = config.hidden_size // config.num_attention_heads
    assert shape.kv_values_per_token == 2 * config.num_hidden_layers * config.num_key_value_heads * head


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has neither model\.safetensors nor"):
        shape_of(tmp_path)


def test_training_takes_sixteen_bytes_a_parameter_shared_by_the_ranks() -> None:
    needed = footprint(SEVEN_B, settings("training.ranks=4"), longest=1000, cuda=True)
    assert needed == Footprint(
        learner=28 * 10**9, engine=14 * 10**9, mirror=14 * 10**9, sequence=2 * 32 * 8 * 128 * 2 * 1000
    )


def test_moments_of_8_bits_leave_ten_bytes_a_parameter() -> None:
    needed = footprint(SEVEN_B, settings("training.optimizer=adamw_8bit"), longest=1000, cuda=True)
    assert needed.learner == 70 * 10**9


def test_adapters_need_only_the_frozen_weights() -> None:
    assert footprint(SEVEN_B, settings("lora.rank=8"), longest=10, cuda=True).learner == 28 * 10**9


@pytest.mark.parametrize(("dtype", "engine"), [("auto", 28), ("float32", 28), ("bfloat16", 14)])
def test_engines_compute_in_float32_on_cpu_unless_told_otherwise(dtype: str, engine: int) -> None:
    needed = footprint(SEVEN_B, settings(f"generator.dtype={dtype}"), longest=10, cuda=False)
    assert needed.engine == engine * 10**9


def test_on_cpu_everybody_takes_from_the_same_memory() -> None:
    needed = Footprint(learner=5, engine=2, mirror=1, sequence=1)
    has = room(needed, settings("generator.count=2", "generator.cpu_cache_gib=1"), free=100, gpus=[])
    assert has == Room(cache=2**30, needed=5 + 2 * (3 + 2**30), free=100)


def test_a_lone_gpu_is_shared() -> None:
    needed = Footprint(learner=50, engine=200, mirror=1, sequence=1)
    chosen = settings("generator.memory_fraction=0.5")
    assert room(needed, chosen, free=0, gpus=[1000]) == Room(cache=300, needed=50, free=500)
    assert room(needed, chosen, free=0, gpus=[1000, 800]) == Room(cache=200, needed=50, free=800)
