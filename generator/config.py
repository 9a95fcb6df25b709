"""Settings of a generator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.config import Section

ALONE = 0.9
"""Share of a GPU that an engine takes which has it to itself, as vLLM does."""


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
    memory_fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of the GPU's memory for the engine; unset: 0.9, or what the learner leaves of a GPU that both use."""
    cpu_cache_gib: float = Field(default=1.0, gt=0)
    """KV cache on CPU, in GiB."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs per generator."""
    chat: str = Field(default="", pattern=r"^(.+:\d{1,5})?$")
    """host:port where each generator answers OpenAI chat requests; port 0: a free one, shown among the parts."""

    @property
    def share_of_gpu(self) -> float:
        """The engine's share of a GPU that nobody else uses."""
        return ALONE if self.memory_fraction is None else self.memory_fraction
