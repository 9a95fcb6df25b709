"""Settings of a generator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.config import Section


class GeneratorConfig(Section):
    """[generator]: the inference engines."""

    count: int = Field(default=1, ge=0)
    """Generators that `sept run` starts; change it while running with `sept scale`."""
    engine: Literal["vllm", "scripted"] = "vllm"
    """scripted answers from a formula instead of a model: for tests of everything around it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type the engine computes in; auto: the published type on CUDA, float32 on CPU."""
    max_in_flight: int = Field(default=64, ge=1)
    """Most sequences in the engine at once; while its KV cache is too small for them, fewer (generator/flow.py)."""
    memory_fraction: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory for the engine."""
    cpu_cache_gib: float = Field(default=1.0, gt=0)
    """KV cache on CPU, in GiB."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs per generator."""
    chat: str = Field(default="", pattern=r"^(.+:\d{1,5})?$")
    """host:port where each generator answers OpenAI chat requests; port 0: a free one, shown among the parts."""
