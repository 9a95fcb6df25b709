"""Which processors and GPUs each part of a local run gets, from what the machine has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from learner.parallel import launch_env

NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


def visible_gpus(environ: Mapping[str, str] | None = None, gpus: Path = NVIDIA_GPUS) -> list[str]:
    """Names of the GPUs this user may use, found without loading a driver."""
    chosen = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index in range(len(list(gpus.iterdir())))] if gpus.is_dir() else []


def learner_env(gpus: list[str], generators: int, cores: int, *, ranks: int = 1) -> dict[str, str]:
    """The learner gets a GPU for each of its ranks, the first ones, or its share of the cores."""
    if len(gpus) > 1:
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[:ranks])}
    return {} if gpus else {"OMP_NUM_THREADS": str(_threads(generators, cores)), **launch_env.ON_CPU}


def generator_env(
    index: int, gpus: list[str], generators: int, cores: int, *, tensor_parallel: int, ranks: int = 1
) -> dict[str, str]:
    """Generators take the GPUs after the learner's in turn; where the learner has all GPUs they share them.

    On CPU every engine would pin its threads to the same first cores by itself, so pinning is off.
    """
    if len(gpus) > 1:
        free = gpus[ranks:] or gpus
        taken = [free[(index * tensor_parallel + offset) % len(free)] for offset in range(tensor_parallel)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(taken))}
    if gpus:
        return {}
    return {"OMP_NUM_THREADS": str(_threads(generators, cores)), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def _threads(generators: int, cores: int) -> int:
    return max(1, cores // (generators + 1))
