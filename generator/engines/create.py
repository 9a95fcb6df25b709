"""Chooses the engine that the settings name. Imports an engine only when it is chosen: vLLM takes seconds to import."""

from __future__ import annotations

from pathlib import Path

from generator.config import GeneratorConfig
from generator.engines.base import Engine

SCRIPTED_STEP_S = 0.005
"""Time per token of a scripted request: slow enough to be interrupted, fast enough for tests to wait for it."""


def create_engine(config: GeneratorConfig, *, max_model_len: int, seed: int = 0, cache: Path | None = None) -> Engine:
    """The engine that the config names, not yet started. Call it in a thread, as it may import vLLM.

    `max_model_len` is the longest prompt plus response, in tokens. `seed` should differ between generators, or they
    sample alike. `cache` is the folder for the files that pass weights to the engine's processes (default: the
    system's folder for temporary files).
    """
    if config.engine == "scripted":
        from generator.engines.scripted import ScriptedEngine

        return ScriptedEngine(step_s=SCRIPTED_STEP_S, max_in_flight=config.max_in_flight, follows_weights=True)
    from generator.engines.vllm.engine import VllmEngine

    return VllmEngine(config, max_model_len=max_model_len, seed=seed, cache=cache)
