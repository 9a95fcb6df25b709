"""vLLM's engine arguments, from the generator's settings and the platform."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from vllm.config import WeightTransferConfig
from vllm.config.logging import LoggingConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from generator.config import GeneratorConfig
from generator.engines.vllm.handover import BACKEND

WORKER = "generator.engines.vllm.worker.ServedWeights"
"""Named, not imported: importing it registers the weight transfer, which is for worker processes."""

ENGINE_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""vLLM's names of the published types that it can compute in."""


def engine_arguments(
    config: GeneratorConfig,
    model_folder: Path,
    *,
    max_model_len: int,
    seed: int,
    published_types: Iterable[str],
    logging: LoggingConfig,
) -> AsyncEngineArgs:
    """`published_types` are the safetensors types of the published tensors, one for each tensor."""
    cpu = current_platform.is_cpu()
    if cpu:  # without it the first scoring compiles a sum, for seconds, with a compiler that may not be installed
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    return AsyncEngineArgs(
        model=str(model_folder),
        trust_remote_code=False,
        skip_tokenizer_init=not config.chat,
        load_format=BACKEND,  # our Loader: safetensors, never a file whose reading runs code
        generation_config="vllm",
        dtype=_engine_type(config, published_types),
        seed=seed,
        max_model_len=max_model_len,
        max_num_seqs=config.max_in_flight + 1,  # one is reserved for scoring
        enforce_eager=cpu,
        gpu_memory_utilization=config.share_of_gpu,
        kv_cache_memory_bytes=int(config.cpu_cache_gib * 2**30) if cpu else None,
        tensor_parallel_size=config.tensor_parallel,
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        worker_extension_cls=WORKER,
        distributed_executor_backend=_executor(config),
        logging_config=logging,
        disable_log_stats=True,
    )


def _engine_type(config: GeneratorConfig, published_types: Iterable[str]) -> str:
    """The config's type; for auto float32 on CPU (bfloat16 is slow on most), else the type of most tensors."""
    if config.dtype != "auto":
        return config.dtype
    if current_platform.is_cpu():
        return "float32"
    return ENGINE_TYPES.get(Counter(published_types).most_common(1)[0][0], "auto")


def _executor(config: GeneratorConfig) -> type[UniProcExecutor] | None:
    """The class that runs the model: vLLM's default on GPUs and for several workers; on one CPU the engine core itself.

    vLLM refuses that executor by name on CPU, because it binds threads in separate worker processes; here nothing is
    bound. One process less starts in half the time, and core and worker do not spin on the cores that they compute on.
    """
    return UniProcExecutor if current_platform.is_cpu() and config.tensor_parallel == 1 else None
