"""The vLLM engine: token ids in, token ids and the spans of their weight versions out.

Runs vLLM's AsyncLLM, whose engine core and workers are processes of their own. An update reaches them as a file.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.inputs.engine import tokens_input
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from generator.config import GeneratorConfig
from generator.engines.base import Completion, EngineLoad, Paused
from generator.engines.vllm.core import EngineCore
from generator.engines.vllm.options import engine_arguments
from generator.engines.vllm.requests import SCORING, Requests, completion, sampling_params
from generator.engines.vllm.root_cause import logging_config, start_error
from generator.engines.vllm.stats import SchedulerLog, stat_logger
from generator.engines.vllm.update_file import create_handover_folder, write_update
from services.contracts import Task
from services.errors import EngineError
from services.tensors import read_safetensors

if TYPE_CHECKING:
    from services.weights.mirror import WeightUpdate

log = structlog.get_logger()


class VllmEngine:
    """vLLM behind the generator's protocol (generator/engines/base.py says what the methods do).

    A task's G samples are G requests, as vLLM would make of one with n = G. They share the blocks of their prompt
    through its prefix cache. Long prompts are read in chunks between the others' tokens (its chunked prefill).
    """

    def __init__(
        self, config: GeneratorConfig, *, max_model_len: int, seed: int = 0, cache: Path | None = None
    ) -> None:
        self._config = config
        self._max_model_len = max_model_len
        self._seed = seed
        self._cache = cache
        self._core = EngineCore()
        self._handover: Path | None = None
        self._scheduler = SchedulerLog()
        self._updating = asyncio.Lock()
        self._published_types: dict[str, str] = {}
        self._patchable: frozenset[str] = frozenset()
        """Tensors that updates patch in place."""
        self.requests = Requests(self._core)
        """For code that speaks vLLM's own request types."""

    @property
    def device(self) -> str:
        return "cpu" if current_platform.is_cpu() else str(current_platform.get_device_name())

    @property
    def precision(self) -> str:
        return str(self.llm.vllm_config.model_config.dtype).removeprefix("torch.")

    @property
    def llm(self) -> AsyncLLM:
        """vLLM's own engine; EngineError when it does not serve."""
        return self._core.llm

    async def start(self, model_folder: Path, version: int) -> None:
        started = time.monotonic()
        published = read_safetensors(model_folder / "model.safetensors")
        self._published_types = {name: tensor.dtype for name, tensor in published.items()}
        self._handover = create_handover_folder(self._cache)
        arguments = await asyncio.to_thread(
            engine_arguments,
            self._config,
            model_folder,
            max_model_len=self._max_model_len,
            seed=self._seed,
            published_types=self._published_types.values(),
            logging=logging_config(self._handover),
        )
        try:
            await self._core.start(arguments, stat_logger(self._scheduler), version)
        except Exception as error:  # of vLLM's configuration, of its processes, or of the model's code
            raise start_error(error, str(model_folder), self._handover, cpu=current_platform.is_cpu()) from error
        self._patchable = await self._find_patchable()
        self.requests.start(version)
        log.info("vllm_started", seconds=round(time.monotonic() - started, 1), device=self.device)

    async def generate(self, task: Task, sample: int) -> Completion:
        prompt = tokens_input(task.prompt_tokens.tolist())
        output = await self.requests.final_output(prompt, sampling_params(task), f"{task.task_id}.{sample}")
        return completion(output.outputs[0])

    async def score(self, tokens: Sequence[int]) -> list[float] | None:
        if self._is_quantised():
            return None
        async with self._updating:
            limit = self.llm.vllm_config.model_config.max_model_len - 1  # vLLM samples one token after the prompt
            output = await self.requests.final_output(tokens_input(list(tokens[:limit])), SCORING, "score")
        assert output.prompt_logprobs is not None
        return [next(iter(found.values())).logprob for found in output.prompt_logprobs[1:]]

    async def apply(self, update: WeightUpdate, paused: Paused = nullcontext) -> float:
        llm = self.llm
        assert self._handover is not None
        async with self._updating:
            path = self._handover / "update.safetensors"
            request = await asyncio.to_thread(write_update, update, path, patchable=self._patchable)
            started = time.monotonic()
            self.requests.block()
            try:
                with paused():
                    await self._core.call(self._replace_weights(llm, request, update.manifest.weight_version))
            except BaseException as error:  # after half an update, whatever stopped it, no version is served
                self._core.fail(EngineError(f"no weights to serve: {error}", hint="restart this generator"))
                raise
            finally:
                self.requests.accept()
                path.unlink()
            return time.monotonic() - started

    def load(self) -> EngineLoad:
        # the scheduler reports with its steps, so its last report may count requests that have ended
        llm, latest = self.llm, self._scheduler.latest
        unfinished = llm.get_num_unfinished_requests()
        running = min(unfinished, latest.num_running_reqs)
        waiting = latest.num_waiting_reqs + latest.num_skipped_waiting_reqs
        cache, longest = llm.vllm_config.cache_config, llm.vllm_config.model_config.max_model_len
        return EngineLoad(
            running=running,
            waiting=min(unfinished - running, waiting),
            cache_used=latest.kv_cache_usage if unfinished else 0.0,
            preemptions=self._scheduler.preemptions,
            fits=(cache.num_gpu_blocks or 0) * cache.block_size // longest,
        )

    async def checksums(self) -> dict[str, str] | None:
        llm = self.llm
        if self._config.tensor_parallel > 1 or self._is_quantised():
            return None
        (digests,) = await self._core.call(llm.collective_rpc("served_digests", args=(self._published_types,)))
        return dict(digests)

    async def stop(self) -> None:
        await self._core.stop()
        if self._handover is not None:
            shutil.rmtree(self._handover, ignore_errors=True)
        self.requests.accept()  # those that wait fail now, instead of waiting for ever

    async def _find_patchable(self) -> frozenset[str]:
        """What every worker keeps as loaded. Quantised engines repeat their quantisation by reloading."""
        if self._is_quantised():
            return frozenset()
        found = await self._core.call(self.llm.collective_rpc("patchable_tensors"))
        names = frozenset.intersection(*map(frozenset, found))
        log.info("patchable_tensors", patchable=len(names), tensors=len(self._published_types))
        return names

    def _is_quantised(self) -> bool:
        return self.llm.vllm_config.model_config.quantization is not None

    async def _replace_weights(self, llm: AsyncLLM, request: WeightTransferUpdateRequest, version: int) -> None:
        # vLLM's pause_generation makes this call and then sleeps for 20 ms
        await llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)
        await self.requests.restart(llm, everything=version <= self.requests.version)
        await llm.start_weight_update()
        await llm.update_weights(request)
        await llm.finish_weight_update(str(version))
        self.requests.set_version(version)
        await llm.resume_generation()
