"""What the scripted engine promises beyond the contract."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from generator.engines.scripted import ScriptedEngine
from services.errors import EngineError
from services.tensors import RawTensor, write_safetensors
from tests.support.engine_rig import task
from tests.support.vllm_models import changed, update_between

WEIGHTS = {"a": RawTensor("F32", (8,), np.arange(32, dtype=np.uint8))}


async def test_a_response_depends_on_task_and_sample_alone(tmp_path: Path) -> None:
    responses = []
    for step_s in (0.0, 0.001):
        engine = ScriptedEngine(step_s=step_s)
        await engine.start(tmp_path, 0)
        completions = await asyncio.gather(*(engine.generate(task("t", stop_token_ids=(300,)), n) for n in range(3)))
        responses.append([completion.response_tokens for completion in completions])
    assert responses[0] == responses[1]


async def test_responses_with_a_stop_token_have_scripted_lengths(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    await engine.start(tmp_path, 0)
    completions = [await engine.generate(task(f"t{n}", stop_token_ids=(300,)), 0) for n in range(20)]
    assert all(completion.response_tokens[-1] == 300 for completion in completions)
    assert len({len(completion.response_tokens) for completion in completions}) > 5


async def test_no_token_lies_beyond_a_small_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 13}')
    engine = ScriptedEngine()
    await engine.start(tmp_path, 0)
    completions = [await engine.generate(task(f"t{n}"), 0) for n in range(20)]
    assert {token for completion in completions for token in completion.response_tokens} == set(range(13))


async def test_other_weights_give_other_responses_with_follows_weights(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", WEIGHTS)
    engine = ScriptedEngine(follows_weights=True)
    await engine.start(tmp_path, 0)
    before = await engine.generate(task(), 0)
    await engine.apply(update_between(1, WEIGHTS, changed(WEIGHTS, 1, share=0.9)))
    after = await engine.generate(task(), 0)
    assert before.response_tokens != after.response_tokens


async def test_requests_beyond_the_limit_wait(tmp_path: Path) -> None:
    engine = ScriptedEngine(max_in_flight=2, step_s=0.001)
    await engine.start(tmp_path, 0)
    requests = [asyncio.create_task(engine.generate(task(), n)) for n in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (engine.load().running, engine.load().waiting) == (2, 3)
    await asyncio.gather(*requests)
    assert (engine.load().running, engine.load().waiting) == (0, 0)


async def test_a_full_cache_makes_sequences_wait_and_changes_no_response(tmp_path: Path) -> None:
    large, small = ScriptedEngine(step_s=0.001), ScriptedEngine(step_s=0.001, cache_tokens=60)
    responses = []
    for engine in (large, small):
        await engine.start(tmp_path, 0)
        responses.append(await asyncio.gather(*(engine.generate(task(), n) for n in range(5))))
    assert responses[0] == responses[1]
    assert (large.load().cache_used, large.load().preemptions) == (0, 0)
    assert small.load().preemptions > 0
    assert (small.load().running, small.load().waiting, small.load().cache_used) == (0, 0, 0)


async def test_an_engine_that_was_not_started_raises() -> None:
    engine = ScriptedEngine()
    with pytest.raises(EngineError, match="not started"):
        await engine.generate(task(), 0)
