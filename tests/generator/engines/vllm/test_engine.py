"""The vLLM engine's KV cache: what fits, what is shared, and preemptions when it is too small."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from generator.config import GeneratorConfig
from generator.engines.create import create_engine
from tests.support.engine_rig import task
from tests.support.vllm_models import write_tiny_model

if TYPE_CHECKING:
    from generator.engines.vllm.engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

GIB = 2**30
TOKEN_BYTES = 2 * 2 * 32 * 4
"""Keys and values of the tiny model's two layers with one head of 64 / 2 float32."""
LONGEST = 1024


@asynccontextmanager
async def started(folder: Path, cache_tokens: int) -> AsyncIterator[VllmEngine]:
    """An engine whose KV cache holds `cache_tokens`, whatever the size of its blocks."""
    from generator.engines.vllm.engine import VllmEngine

    write_tiny_model(folder)
    config = GeneratorConfig(cpu_cache_gib=cache_tokens * TOKEN_BYTES / GIB, max_in_flight=16)
    engine = await asyncio.to_thread(create_engine, config, max_model_len=LONGEST, seed=1)
    assert isinstance(engine, VllmEngine)
    await engine.start(folder, 0)
    try:
        yield engine
    finally:
        await engine.stop()
        gc.collect()  # vLLM leaves its sockets' context to the collector, which would warn during another test


async def test_preemptions_are_counted_when_the_kv_cache_is_too_small(tmp_path: Path) -> None:
    """Two of the longest sequences fit; six of nearly that length evict each other."""
    async with started(tmp_path, cache_tokens=2 * LONGEST + 256) as engine:
        assert (engine.load().fits, engine.load().preemptions) == (2, 0)
        requests = [engine.generate(task(f"t{n}", max_response_tokens=900), 0) for n in range(6)]
        completions = await asyncio.gather(*requests)
        assert [len(completion.response_tokens) for completion in completions] == [900] * 6
        assert engine.load().preemptions > 0


async def test_samples_of_one_task_share_the_blocks_of_their_prompt(tmp_path: Path) -> None:
    """Eight samples of a prompt that nearly fills the cache: only shared blocks let them run side by side."""
    prompt = [(7 * n) % 311 for n in range(900)]
    async with started(tmp_path, cache_tokens=2 * LONGEST + 256) as engine:
        prompted = task(prompt_tokens=prompt, max_response_tokens=60, samples=8)
        await asyncio.gather(*(engine.generate(prompted, sample) for sample in range(8)))
        assert engine.load().preemptions == 0
