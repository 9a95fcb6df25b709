"""Says whether vLLM serves a model, without its weights: a program of its own, since vLLM keeps state in its process.

    echo '{"model": "...", "config": {...}, "max_model_len": 1024, "published_types": ["BF16"]}' \\
        | python -m generator.engines.vllm.ask ANSWER

writes the file ANSWER: an object, with "refusal" and "hint" if vLLM refuses. It builds the model on the meta device,
where tensors have shapes and no memory, with all that vLLM checks on the way. It writes nothing where that tells
nothing: this machine lacks something now, or the model's class reads values when it is built.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed.parallel_state import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype

from generator.config import GeneratorConfig
from generator.engines.vllm.options import engine_arguments
from generator.engines.vllm.root_cause import logging_config, start_error
from services.errors import ConfigError, ModelError

_WITHOUT_WEIGHTS = re.compile(r"meta tensor|meta device|meta backend|device\W{0,9}meta\b", re.IGNORECASE)
"""In errors of a class that reads values of its weights when it is built."""


def configured(question: dict[str, Any], folder: Path) -> VllmConfig:
    """vLLM's configuration for the question; raises what vLLM raises. `folder` is for files that it needs."""
    arguments = engine_arguments(
        GeneratorConfig(**question["config"]),
        Path(question["model"]),
        max_model_len=question["max_model_len"],
        seed=0,
        published_types=question["published_types"],
        logging=logging_config(folder),
    )
    config: VllmConfig = arguments.create_engine_config()
    return config


def build_without_weights(config: VllmConfig) -> None:
    """Raises what vLLM and the model's class raise."""
    with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"):
        initialize_model(config)


def answer(question: dict[str, Any]) -> dict[str, str] | None:
    """What is written: empty when vLLM serves the model, None when it is not known."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = configured(question, Path(folder))
        except Exception as error:
            return _refusal(error, question["model"], Path(folder))
        with set_current_vllm_config(config):
            try:
                init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
                initialize_model_parallel()
            except Exception:  # says nothing of the model
                return None
            try:
                build_without_weights(config)
            except Exception as error:
                return _refusal(error, question["model"], Path(folder))
    return {}


def _refusal(error: Exception, model: str, folder: Path) -> dict[str, str] | None:
    """None for what might not come again, and for what comes only because there are no weights."""
    refused = start_error(error, model, folder, cpu=current_platform.is_cpu())
    if not isinstance(refused, (ModelError, ConfigError)) or _WITHOUT_WEIGHTS.search(refused.message):
        return None
    return {"refusal": refused.message, "hint": refused.hint}


if __name__ == "__main__":
    found = answer(json.load(sys.stdin))
    if found is not None:
        Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
