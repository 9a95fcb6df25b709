"""What vLLM cannot serve is known before anything starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config

from generator.config import GeneratorConfig
from generator.engines.ask import ask_engine
from services.errors import ModelError
from tests.support import tiny_models
from tests.support.vllm_models import write_tiny_model

CONFIG = GeneratorConfig(cpu_cache_gib=0.1)


async def test_the_scripted_engine_serves_every_model(tmp_path: Path) -> None:
    config = GeneratorConfig(engine="scripted")
    assert await ask_engine(config, tmp_path, max_model_len=64, published_types=[], environ={})


@pytest.mark.vllm
async def test_a_model_that_vllm_cannot_serve_is_refused_with_its_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows in some layers only, which vLLM sees when it builds the model; whatever the working directory holds."""
    (tmp_path / "here" / "services").mkdir(parents=True)
    (tmp_path / "here" / "services" / "__init__.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path / "here")
    windows: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    tiny_models.save(tmp_path, Qwen2Config(**tiny_models.SHAPE, **windows))
    with pytest.raises(ModelError, match=r"vLLM cannot serve .*Sliding window for some but all layers"):
        await ask_engine(CONFIG, tmp_path, max_model_len=64, published_types=["F32"], environ=os.environ)


@pytest.mark.vllm
@pytest.mark.slow
async def test_the_longest_sequence_must_fit_into_the_model(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    assert await ask_engine(CONFIG, tmp_path, max_model_len=4096, published_types=["BF16"], environ=os.environ)
    with pytest.raises(ModelError, match="4097"):
        await ask_engine(CONFIG, tmp_path, max_model_len=4097, published_types=["BF16"], environ=os.environ)
