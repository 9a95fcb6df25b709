"""What every engine must do, tested with the scripted and with the vLLM engine."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from generator.config import GeneratorConfig
from generator.engines.base import Completion, Engine
from generator.engines.create import create_engine
from generator.engines.scripted import ScriptedEngine
from services.contracts import VersionSpan
from services.errors import EngineError
from services.tensors import RawTensor, read_safetensors
from tests.support.engine_rig import FIRST_VERSION, Rig, task
from tests.support.vllm_models import greedy_gaps, update_between, write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_MODEL_LEN = 3000
LONG = 2500
MAX_IN_FLIGHT = 8


# vLLM's own imports warn of deprecations
VLLM = pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.filterwarnings("ignore")])
only_vllm = pytest.mark.parametrize("rig", [VLLM], indirect=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["scripted", VLLM])
async def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("model")
    engine: Engine
    if request.param == "vllm":
        write_tiny_model(folder)
        engine = await asyncio.to_thread(
            create_engine,
            GeneratorConfig(max_in_flight=MAX_IN_FLIGHT, cpu_cache_gib=0.25),
            max_model_len=MAX_MODEL_LEN,
            seed=1,
        )
    else:
        write_scripted_model(folder)
        engine = ScriptedEngine(step_s=0.001, max_in_flight=MAX_IN_FLIGHT, scores=True)
    await engine.start(folder, FIRST_VERSION)
    yield Rig(engine, folder, FIRST_VERSION, read_safetensors(folder / "model.safetensors"))
    await engine.stop()
    gc.collect()  # vLLM leaves its sockets' context to the collector, which would warn during another test


def write_scripted_model(folder: Path) -> None:
    import numpy as np

    from services.tensors import write_safetensors

    random = np.random.default_rng(0)
    data = random.integers(0, 256, 2 * 40 * 8, dtype=np.uint8)
    write_safetensors(folder / "model.safetensors", {"a": RawTensor("BF16", (40, 8), data)})


def assert_covered(completion: Completion) -> None:
    assert completion.response_tokens
    assert completion.spans[0].start == 0
    assert completion.spans[-1].end == len(completion.response_tokens)
    for before, after in zip(completion.spans, completion.spans[1:], strict=False):
        assert before.end == after.start
        assert before.weight_version < after.weight_version


async def test_spans_cover_the_response(rig: Rig) -> None:
    completion = await rig.engine.generate(task(), 0)
    assert_covered(completion)
    assert [span.weight_version for span in completion.spans] == [rig.version]


async def test_a_response_without_stop_token_ends_at_its_limit(rig: Rig) -> None:
    completion = await rig.engine.generate(task(max_response_tokens=7), 0)
    assert len(completion.response_tokens) == 7
    assert completion.finish_reason == "length"


async def test_a_stop_token_ends_the_response_and_is_part_of_it(rig: Rig) -> None:
    free = await rig.engine.generate(task(temperature=0), 0)
    stop = free.response_tokens[5]
    completion = await rig.engine.generate(task(temperature=0, stop_token_ids=(stop,)), 0)
    assert completion.finish_reason == "stop"
    assert completion.response_tokens.index(stop) == len(completion.response_tokens) - 1


async def test_temperature_zero_is_deterministic(rig: Rig) -> None:
    first = await rig.engine.generate(task(temperature=0), 0)
    second = await rig.engine.generate(task(temperature=0), 1)
    assert first.response_tokens == second.response_tokens


async def test_samples_of_a_task_differ(rig: Rig) -> None:
    prompts = task(samples=4)
    completions = await asyncio.gather(*(rig.engine.generate(prompts, sample) for sample in range(4)))
    assert len({tuple(completion.response_tokens) for completion in completions}) == 4


async def test_cancelling_aborts_the_request(rig: Rig) -> None:
    request = asyncio.create_task(rig.engine.generate(task(max_response_tokens=LONG), 0))
    await rig.until(lambda: rig.engine.load().running == 1)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await rig.until(lambda: rig.engine.load().running == 0)
    assert_covered(await rig.engine.generate(task(), 0))


async def test_served_weights_are_those_of_the_folder(rig: Rig) -> None:
    await assert_served(rig)


@pytest.mark.parametrize("sparse", [True, False])
async def test_after_an_update_the_served_weights_are_the_published_ones(rig: Rig, sparse: bool) -> None:
    assert await rig.update(sparse=sparse) >= 0
    await assert_served(rig)
    completion = await rig.engine.generate(task(), 0)
    assert completion.spans == (VersionSpan(weight_version=rig.version, start=0, end=len(completion.response_tokens)),)


async def test_requests_in_flight_survive_updates_and_span_versions(rig: Rig) -> None:
    before = rig.version
    requests = [asyncio.create_task(rig.engine.generate(task(max_response_tokens=LONG), n)) for n in range(3)]
    await rig.until(lambda: rig.engine.load().running == 3)
    await rig.update()
    await rig.until(lambda: rig.engine.load().running == 3)
    await rig.update()
    completions = await asyncio.gather(*requests)
    for completion in completions:
        assert_covered(completion)
        assert completion.spans[-1].weight_version == before + 2
    assert any(completion.spans[0].weight_version == before for completion in completions)
    await assert_served(rig)


async def test_a_version_that_goes_back_starts_requests_over(rig: Rig) -> None:
    request = asyncio.create_task(rig.engine.generate(task(max_response_tokens=LONG), 0))
    await rig.until(lambda: rig.engine.load().running == 1)
    await rig.update(version=rig.version - 1)
    completion = await request
    assert_covered(completion)
    assert [span.weight_version for span in completion.spans] == [rig.version]
    await assert_served(rig)


async def test_many_requests_and_updates_at_once(rig: Rig) -> None:
    lengths = [1 + 37 * n for n in range(24)]
    requests = [
        asyncio.create_task(rig.engine.generate(task(f"t{n}", max_response_tokens=length), 0))
        for n, length in enumerate(lengths)
    ]
    await rig.until(lambda: rig.engine.load().waiting > 0)
    for _ in range(3):
        await rig.update()
    completions = await asyncio.gather(*requests)
    assert [len(completion.response_tokens) for completion in completions] == lengths
    for completion in completions:
        assert_covered(completion)


async def test_a_full_engine_scores_by_the_weights_served_while_it_generates(rig: Rig) -> None:
    tasks = [task(f"t{n}", max_response_tokens=LONG) for n in range(MAX_IN_FLIGHT)]
    requests = [asyncio.create_task(rig.engine.generate(each, 0)) for each in tasks]
    await rig.until(lambda: rig.engine.load().running == MAX_IN_FLIGHT)
    tokens = (5, 9, 200, 31, 7)
    before = await rig.engine.score(tokens)
    again = await rig.engine.score(tokens)
    await rig.update()
    after = await rig.engine.score(tokens)
    assert not any(request.done() for request in requests)
    for request in requests:
        request.cancel()
    await asyncio.wait(requests)
    assert before is not None and after is not None and again is not None
    assert len(before) == len(after) == len(tokens) - 1
    assert max(*before, *after) <= 0
    assert again == pytest.approx(before, abs=1e-4), "other sequences in the batch change the last digits only"
    assert after != pytest.approx(before, abs=1e-2)
    await rig.until(lambda: rig.engine.load().running == 0)


@only_vllm
async def test_only_the_beginning_of_a_sequence_that_is_too_long_is_scored(rig: Rig) -> None:
    scored = await rig.engine.score([n % 311 for n in range(MAX_MODEL_LEN + 100)])
    assert scored is not None
    assert len(scored) == MAX_MODEL_LEN - 2, "the first token has no score, and vLLM samples one token"


async def test_an_idle_engine_reports_no_load(rig: Rig) -> None:
    await rig.engine.generate(task(), 0)
    load = rig.engine.load()
    assert (load.running, load.waiting) == (0, 0)
    assert 0 <= load.cache_used <= 1


@only_vllm
async def test_new_requests_see_nothing_of_older_weights(rig: Rig) -> None:
    """The prompt fills cache blocks under the old weights; after the update no response uses them."""
    prompt = [(7 * n) % 311 for n in range(300)]
    question = task(prompt_tokens=prompt, temperature=0, max_response_tokens=30)
    for _ in range(2):
        response = (await rig.engine.generate(question, 0)).response_tokens
        assert max(greedy_gaps(rig.folder, rig.tensors, prompt, response)) < 1e-3
        old = rig.tensors
        await rig.update()
        response = (await rig.engine.generate(question, 0)).response_tokens
        assert max(greedy_gaps(rig.folder, rig.tensors, prompt, response)) < 1e-3
        assert max(greedy_gaps(rig.folder, old, prompt, response)) > 0.1


async def test_a_dead_engine_fails_at_once(rig: Rig) -> None:
    """Must be the last test: it kills the engine."""
    request = asyncio.create_task(rig.engine.generate(task(max_response_tokens=LONG), 0))
    await rig.until(lambda: rig.engine.load().running == 1)
    kill(rig.engine)
    with pytest.raises(EngineError):
        await asyncio.wait_for(request, 10)
    with pytest.raises(EngineError):
        await asyncio.wait_for(rig.engine.generate(task(), 0), 10)
    with pytest.raises(EngineError):
        await asyncio.wait_for(rig.update(), 10)


def kill(engine: Engine) -> None:
    if isinstance(engine, ScriptedEngine):
        engine.die("the test killed it")
        return
    from generator.engines.vllm.engine import VllmEngine

    assert isinstance(engine, VllmEngine)
    for process in engine.llm.engine_core.resources.engine_manager.processes:
        process.kill()


async def assert_served(rig: Rig) -> None:
    published = {entry.name: entry.digest for entry in update_between(0, rig.tensors, rig.tensors).manifest.tensors}
    assert await rig.engine.checksums() == published
