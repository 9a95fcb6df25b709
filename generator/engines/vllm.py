"""The vLLM engine: token ids in, token ids and the spans of their weight versions out. Runs vLLM's AsyncLLM; the
engine core is a process of its own, and so are the workers of several GPUs.

An update reaches the workers as a local safetensors file (see `generator.engines.vllm_worker`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

# vLLM reads these when it is imported or starts its processes; what the operator has set stays.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # bound, two engines on a machine share one core
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import numpy as np
from vllm import SamplingParams
from vllm.config import VllmConfig, WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest, layerwise_groups
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs.engine import EngineInput, tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from generator.config import GeneratorConfig
from generator.engines.base import Completion, EngineLoad, Paused
from generator.engines.handover import BACKEND, GENERATOR_PID, INDICES, VALUES
from services.contracts import Task, VersionSpan
from services.errors import DeadlineError, EngineError
from services.weights.tensors import RawTensor, read_safetensors, write_safetensors

if TYPE_CHECKING:
    from services.weights.mirror import WeightUpdate

log = structlog.get_logger()

UPDATE_DEADLINE_S = 600.0
"""Longest wait for the workers to take one update."""
STOP_DEADLINE_S = 12.0
"""Longest wait for the processes to end by themselves; killed ones leave shared memory behind."""
WORKER = "generator.engines.vllm_worker.ServedWeights"
"""Named, not imported: importing it registers the weight transfer, which is for worker processes."""

ENGINE_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""vLLM's names of the published types that it can compute in."""
PATCHABLE_BITS = {"BF16": (0x7F80, 0x007F), "F16": (0x7C00, 0x03FF), "F32": (0x7F800000, 0x007FFFFF)}
"""Masks of exponent and fraction of the types that take sparse patches; vLLM marks the unchanged by NaN."""

T = TypeVar("T")


class VllmEngine:
    """One AsyncLLM. A request that has no token yet when an update comes starts over, so that no response begins
    after a prompt that older weights have read; the others keep their tokens and their KV.

    A task's G samples are G requests: vLLM would make as many of one with n = G. They share the blocks of their prompt
    through its prefix cache. Long prompts are read in chunks between the others' tokens (its chunked prefill).
    """

    def __init__(self, config: GeneratorConfig, *, seed: int = 0, cache: Path | None = None) -> None:
        self._config = config
        self._seed = seed
        self._cache = cache
        self._llm: AsyncLLM | None = None
        self._handover: Path | None = None
        self._stats = SchedulerStats()
        self._preemptions = 0
        self._version = -1
        self._updates = 0
        self._open = asyncio.Event()
        self._updating = asyncio.Lock()
        self._restarting: set[str] = set()
        self._numbers = itertools.count()
        self._types: dict[str, str] = {}
        self._failure: EngineError | None = None

    @property
    def device(self) -> str:
        return "cpu" if current_platform.is_cpu() else str(current_platform.get_device_name())

    async def start(self, model_folder: Path, version: int) -> None:
        published = read_safetensors(model_folder / "model.safetensors")
        self._types = {name: tensor.dtype for name, tensor in published.items()}
        self._handover = _handover_folder(self._cache)
        started = time.monotonic()
        try:
            self._llm = llm = await asyncio.to_thread(self._create, model_folder)
            # asked for once here, so that adding a request never waits between reading the version and queueing
            await llm.get_supported_tasks()
            await llm.update_weight_version(str(version))
        except (EngineDeadError, RuntimeError, ValueError) as error:
            raise EngineError(
                f"vLLM did not start from {model_folder}: {error}",
                hint="its own log above says why; too little memory for [generator] max_model_len is common",
            ) from error
        self._version = version
        self._open.set()
        log.info("vllm_started", seconds=round(time.monotonic() - started, 1), device=self.device)

    @property
    def precision(self) -> str:
        return str(self._serving().vllm_config.model_config.dtype).removeprefix("torch.")

    async def generate(self, task: Task, sample: int) -> Completion:
        prompt = tokens_input(task.prompt_tokens.tolist())
        output = await self._answer(prompt, _sampling_params(task), f"{task.task_id}.{sample}")
        return _completion(output.outputs[0])

    @property
    def version(self) -> int:
        """What requests that come now are answered by."""
        return self._version

    @property
    def llm(self) -> AsyncLLM:
        """vLLM's engine, for what knows vLLM itself; EngineError when it does not serve."""
        return self._serving()

    async def outputs(
        self, prompt: EngineInput, params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """vLLM's outputs of one request; it starts over where new weights want that, unless some of it is given out."""
        given = False
        while True:
            await self._open.wait()
            llm = self._serving()
            numbered = f"{request_id}.{next(self._numbers)}"
            # the salt keeps new requests away from prefix blocks that other weights have computed
            salted = {**prompt, "cache_salt": f"{self._version}.{self._updates}"}
            async for output in llm.generate(salted, params, numbered, **options):
                if given or numbered not in self._restarting:
                    given = True
                    yield output
            if numbered not in self._restarting:
                return
            self._restarting.discard(numbered)
            if given:
                return

    async def _answer(self, prompt: EngineInput, params: SamplingParams, request_id: str) -> RequestOutput:
        """One request to its end."""
        try:
            async for output in self.outputs(prompt, params, request_id):
                answer = output
        except (EngineDeadError, EngineGenerateError) as error:
            raise self._died() from error
        except ValueError as error:
            raise EngineError(f"vLLM refused request {request_id}: {error}") from error
        return answer

    async def score(self, tokens: Sequence[int]) -> list[float] | None:
        if self._is_quantised():
            return None
        async with self._updating:
            most = self._serving().vllm_config.model_config.max_model_len - 1  # one place is for the token sampled
            output = await self._answer(tokens_input(list(tokens[:most])), SCORING, "score")
        assert output.prompt_logprobs is not None
        return [next(iter(found.values())).logprob for found in output.prompt_logprobs[1:]]

    async def apply(self, update: WeightUpdate, paused: Paused = nullcontext) -> float:
        llm = self._serving()
        assert self._handover is not None
        async with self._updating:
            path = self._handover / "update.safetensors"
            request = await asyncio.to_thread(self._hand_over, update, path)
            started = time.monotonic()
            self._open.clear()
            try:
                with paused():
                    await self._reachable(self._replace(llm, request, update.manifest.weight_version))
            except BaseException as error:  # whatever it was, half an update is no version
                self._failure = EngineError(f"no weights to serve: {error}", hint="restart this generator")
                llm.output_processor.propagate_error(EngineDeadError())
                raise
            finally:
                self._open.set()
                path.unlink()
            return time.monotonic() - started

    def load(self) -> EngineLoad:
        # the scheduler reports with its steps, so its last word may be about requests that are gone
        llm = self._serving()
        unfinished = llm.get_num_unfinished_requests()
        running = min(unfinished, self._stats.num_running_reqs)
        waiting = self._stats.num_waiting_reqs + self._stats.num_skipped_waiting_reqs
        cache, longest = llm.vllm_config.cache_config, llm.vllm_config.model_config.max_model_len
        return EngineLoad(
            running=running,
            waiting=min(unfinished - running, waiting),
            cache_used=self._stats.kv_cache_usage if unfinished else 0.0,
            preemptions=self._preemptions,
            fits=(cache.num_gpu_blocks or 0) * cache.block_size // longest,
        )

    async def checksums(self) -> dict[str, str] | None:
        llm = self._serving()
        if self._config.tensor_parallel > 1 or self._is_quantised():
            return None
        (digests,) = await self._reachable(llm.collective_rpc("served_digests", args=(self._types,)))
        return dict(digests)

    async def stop(self) -> None:
        if self._llm is not None:
            llm, self._llm = self._llm, None
            llm.output_processor.propagate_error(EngineDeadError())
            if llm.output_handler is not None:
                llm.output_handler.cancel()
            await asyncio.to_thread(llm.shutdown, STOP_DEADLINE_S)
            llm.engine_core.resources.ctx.destroy(linger=0)  # vLLM leaves it to the garbage collector
        if self._handover is not None:
            shutil.rmtree(self._handover, ignore_errors=True)
        self._open.set()

    def _create(self, model_folder: Path) -> AsyncLLM:
        os.environ[GENERATOR_PID] = str(os.getpid())
        cpu = current_platform.is_cpu()
        if cpu:  # without it the first scoring compiles a sum, for seconds, with a compiler that may not be there
            os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        arguments = AsyncEngineArgs(
            model=str(model_folder),
            skip_tokenizer_init=not self._config.chat,
            generation_config="vllm",
            dtype=self._engine_type(),
            seed=self._seed,
            max_model_len=self._config.max_model_len,
            max_num_seqs=self._config.max_in_flight + 1,  # a place is kept for scoring
            enforce_eager=cpu,
            gpu_memory_utilization=self._config.memory_fraction,
            kv_cache_memory_bytes=int(self._config.cpu_cache_gib * 2**30) if cpu else None,
            tensor_parallel_size=self._config.tensor_parallel,
            weight_transfer_config=WeightTransferConfig(backend=BACKEND),
            worker_extension_cls=WORKER,
            distributed_executor_backend=_executor(self._config),
            disable_log_stats=True,
        )
        return AsyncLLM.from_engine_args(arguments, stat_loggers=[_stats_into(self)])

    def _engine_type(self) -> str:
        """The config's type; for auto float32 on CPU (bfloat16 is slow on most), else what most tensors come in."""
        if self._config.dtype != "auto":
            return self._config.dtype
        if current_platform.is_cpu():
            return "float32"
        return ENGINE_TYPES.get(Counter(self._types.values()).most_common(1)[0][0], "auto")

    def _hand_over(self, update: WeightUpdate, path: Path) -> WeightTransferUpdateRequest:
        """Write the update where the workers can read it, while generation goes on."""
        patches = None if self._is_quantised() or current_platform.is_cpu() else sparse_patches(update)
        if patches is not None:
            shapes = {name: list(update.tensors[name].shape) for name in update.changed}
            write_safetensors(path, patches, lasting=False)
            return WeightTransferUpdateRequest({"path": str(path), "patched_shapes": shapes})
        write_safetensors(path, changed_groups(update), lasting=False)
        return WeightTransferUpdateRequest({"path": str(path)})

    def _is_quantised(self) -> bool:
        return self._serving().vllm_config.model_config.quantization is not None

    async def _replace(self, llm: AsyncLLM, request: WeightTransferUpdateRequest, version: int) -> None:
        # vLLM's pause_generation is this call and a nap of 20 ms for the caller's convenience
        await llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)
        await self._restart_requests(llm, everything=version <= self._version)
        await llm.start_weight_update()
        await llm.update_weights(request)
        await llm.finish_weight_update(str(version))
        self._version = version
        self._updates += 1
        await llm.resume_generation()

    async def _restart_requests(self, llm: AsyncLLM, *, everything: bool) -> None:
        """Send back to `generate` those without a token yet; all of them when the version does not ascend."""
        restarting = [
            (internal_id, state.external_req_id)
            for internal_id, state in llm.output_processor.request_states.items()
            if everything or not state.weight_version_starts
        ]
        self._restarting.update(request_id for _, request_id in restarting)
        await llm.abort([internal_id for internal_id, _ in restarting], internal=True)

    async def _reachable(self, call: Coroutine[Any, Any, T]) -> T:
        """Await an answer of the workers, which vLLM would wait for even after their death."""
        assert self._llm is not None
        self._llm._run_output_handler()
        task, alive = asyncio.create_task(call), self._llm.output_handler
        try:
            done, _ = await asyncio.wait({task, alive}, timeout=UPDATE_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
        if task not in done:
            raise self._died() if done else DeadlineError("vLLM's workers", "an answer", UPDATE_DEADLINE_S)
        try:
            return await task
        except EngineDeadError as error:
            raise self._died() from error
        # what the workers raise arrives as a bare Exception with their text
        except Exception as error:
            raise EngineError(f"vLLM's workers failed: {error}") from error

    def _serving(self) -> AsyncLLM:
        if self._failure is not None:
            raise self._failure
        if self._llm is None:
            raise EngineError("the vLLM engine is not running", hint="start it first")
        if self._llm.errored:
            raise self._died()
        return self._llm

    def _died(self) -> EngineError:
        return self._failure or EngineError(
            "vLLM's engine core has died", hint="its own log above says why; restart this generator"
        )


def _executor(config: GeneratorConfig) -> type[UniProcExecutor] | None:
    """What runs the model: vLLM's own choice on GPUs and for several workers; on one CPU the engine core itself.

    By name vLLM refuses that on CPU, as it binds threads in worker processes of their own; here nothing is bound. One
    process less starts in half the time, and core and worker do not spin for each other on the cores they compute on.
    """
    return UniProcExecutor if current_platform.is_cpu() and config.tensor_parallel == 1 else None


def sparse_patches(update: WeightUpdate) -> dict[str, RawTensor] | None:
    """Positions and new values of what changed, as tensors; None where whole tensors must travel: after a snapshot,
    for types that take no patches, and for new NaNs.
    """
    if update.patches is None:
        return None
    indices: dict[str, list[np.ndarray[Any, np.dtype[np.int64]]]] = {}
    for patch in update.patches:
        indices.setdefault(patch.name, []).append(patch.indices)
    tensors = {}
    for name, parts in indices.items():
        tensor = update.tensors[name]
        if tensor.dtype not in PATCHABLE_BITS:
            return None
        # a chain of deltas may touch an element twice; the newest value is in the mirror
        positions = parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))
        values = tensor.data.view(f"<u{tensor.item_bytes}")[positions]
        exponent, fraction = PATCHABLE_BITS[tensor.dtype]
        if bool(((values & exponent == exponent) & (values & fraction != 0)).any()):
            return None
        tensors[INDICES + name] = RawTensor("I64", positions.shape, positions.astype("<i8").view(np.uint8))
        tensors[VALUES + name] = RawTensor(tensor.dtype, positions.shape, values.view(np.uint8))
    return tensors


def changed_groups(update: WeightUpdate) -> Mapping[str, RawTensor]:
    """Every tensor of the decoder layers that changed: fused layers reload only as a whole."""
    groups = layerwise_groups(list(update.tensors))
    touched = [group for group in groups if not update.changed.isdisjoint(group)]
    return {name: update.tensors[name] for group in touched for name in group}


def _handover_folder(cache: Path | None) -> Path:
    """An empty folder for the files that the workers read; what a killed process left in the cache goes."""
    if cache is None:
        return Path(tempfile.mkdtemp(prefix="sept-"))
    folder = cache / "handover"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


SCORING = SamplingParams(
    temperature=0.0,
    max_tokens=1,  # vLLM samples at least one
    prompt_logprobs=0,  # those of the prompt's own tokens; vLLM then computes all of it, without cached prefixes
    detokenize=False,
    output_kind=RequestOutputKind.FINAL_ONLY,
)


def _sampling_params(task: Task) -> SamplingParams:
    return SamplingParams(
        temperature=task.temperature,
        top_p=task.top_p,
        max_tokens=task.max_response_tokens,
        stop_token_ids=list(task.stop_token_ids),
        ignore_eos=True,  # the task names every token that ends a response
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(response: CompletionOutput) -> Completion:
    if response.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a request with {response.finish_reason!r}")
    spans = tuple(
        VersionSpan(weight_version=int(span.version), start=span.start, end=span.end)
        for span in response.weight_versions or ()
    )
    return Completion(list(response.token_ids), response.finish_reason, spans)


def _stats_into(engine: VllmEngine) -> type[PrometheusStatLogger]:
    """A logger that keeps the scheduler's newest numbers and counts preemptions. vLLM adds its Prometheus logger unless
    it is given one.
    """

    class Stats(PrometheusStatLogger):  # type: ignore[misc]  # vLLM is untyped here
        def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int] | None = None) -> None:
            """Registers no metric."""

        def record(
            self,
            scheduler_stats: SchedulerStats | None,
            iteration_stats: IterationStats | None,
            *_args: Any,
            **_kwargs: Any,
        ) -> None:
            if scheduler_stats is not None:
                engine._stats = scheduler_stats
            if iteration_stats is not None:
                engine._preemptions += iteration_stats.num_preempted_reqs

        def log_engine_initialized(self) -> None:
            """Nothing to say."""

        def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
            """Never asleep."""

    return Stats
