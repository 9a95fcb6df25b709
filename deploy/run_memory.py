"""Whether a run fits into this machine's memory, asked before anything loads; and how a single GPU is shared.

The learner's need is that of `learner.memory`. An engine holds the weights as it computes with them, and a KV cache, of
which a token takes 2 n h d values: keys and values of n layers with h heads of size d (Kwon et al., arXiv 2309.06180).
The published weights are in the host's memory once for all of its generators.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.placement import Placement, place, visible_gpus
from deploy.settings import Settings
from learner.config import Recomputation
from learner.memory.fitting import Room, check_fits, estimate, recomputation_of
from learner.memory.machine import HostMemory, gpu_bytes, host_memory
from learner.memory.model_shape import ModelShape, read_shape, shape_of_config
from learner.memory.rank_memory import FLOAT32_BYTES, LIBRARIES_BYTES, RankMemory, ranks_that_share
from learner.model_folder.files import read_json
from learner.model_folder.hub import ANSWERS_WITHIN_S, is_on_hub
from learner.model_folder.local_folder import local_folder
from services.errors import ConfigError, UnavailableError

GIB = 1 << 30
ENGINE_WORK_BYTES = 4 * GIB
"""Of an engine on each of its GPUs: activations of a prefill, CUDA graphs and contexts, a patch of weights."""
ENGINE_LIBRARIES_BYTES = 2 * GIB
"""Of an engine's processes in the host's memory."""
SERVICES_BYTES = GIB // 4
"""Of Redis, the services and the supervisor."""
LEARNER_LIBRARIES_BYTES = 2 * GIB
"""In the host's memory of each rank that computes on a GPU."""
CHECKPOINT_BYTES = 12
"""Of a parameter: the copy of weights and moments that is written while a GPU trains on."""
PUBLISHED_COPIES = 2
"""In the host's memory: rank 0's, and that of the process that encodes."""
OFFLOADED_BYTES = 8
"""Of a parameter: moments that training.optimizer_offload keeps in the host's memory."""
LIGHT_BYTES = GIB // 8
"""Of a generator whose engine is scripted."""
VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""By generator.dtype; auto depends on the platform."""


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """What this machine has."""

    host: HostMemory
    gpus: Mapping[str, int] = field(default_factory=dict)
    """Bytes by name; empty where the driver does not tell."""


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Bytes of one generator."""

    device: int
    """On each of its GPUs without KV cache; 0 on CPU."""
    host: int
    """In the host's memory, without what it shares with others."""
    sequence: int
    """KV cache of one sequence of the longest kind, where the engine computes."""


@dataclass(frozen=True, slots=True)
class RunMemory:
    """What a run needs, and what follows from it for its parts."""

    learner: RankMemory | None
    """Of each rank; None for an evaluator, and on GPUs whose size is not known."""
    engine: EngineMemory
    host_bytes: int
    """Of all parts, in the host's memory."""
    sequences: int | None
    """Of the longest kind that the KV cache of an engine holds; None on a GPU whose size is not known."""
    recomputation: Recomputation | None = None
    """What the learner is to recompute; None: it decides by itself."""
    memory_fraction: float | None = None
    """Of the engine, on a GPU that it shares with the learner."""
    learner_share: float | None = None
    """Of the learner's tensors, on that GPU."""


def place_parts(settings: Settings, *, leader: str = "learner", gpus: Sequence[str] | None = None) -> Placement:
    """Who computes where; ConfigError when the GPUs do not suffice. An evaluator needs none.

    `gpus`: names of those that there are; None: those of this machine.
    """
    generator, on_gpus = settings.generator, leader == "learner" and settings.training.device != "cpu"
    return place(
        visible_gpus() if gpus is None else gpus,
        len(os.sched_getaffinity(0)),
        ranks=settings.training.ranks_per_node if on_gpus else 0,
        generators=generator.count,
        tensor_parallel=generator.tensor_parallel if generator.engine == "vllm" else 0,
    )


def this_machine(placement: Placement) -> MachineMemory:
    """Asks the kernel, and the driver about the GPUs that are used."""
    names = list(dict.fromkeys([*placement.learner, *(gpu for group in placement.generators or () for gpu in group)]))
    return MachineMemory(host_memory(), dict(zip(names, gpu_bytes(names), strict=False)))


def memory_of_run(settings: Settings, placement: Placement, *, leader: str = "learner") -> RunMemory | None:
    """`plan_memory` for this machine; None when the model's sizes cannot be known yet."""
    shape = shape_of_model(settings.model.path)
    if shape is not None:
        return plan_memory(shape, settings, placement, this_machine(placement), leader=leader)
    if placement.shared and settings.generator.memory_fraction is None:
        raise _share_unknown("the model's sizes are not known")
    return None


def shape_of_model(path: str) -> ModelShape | None:
    """Of a model folder; of a model on the hub from its config.json alone, unless it cannot be fetched."""
    folder = local_folder(path)
    if folder is not None:
        return read_shape(folder)
    import huggingface_hub

    try:
        if not is_on_hub("model", path):
            return None
        config = huggingface_hub.hf_hub_download(path, "config.json", etag_timeout=ANSWERS_WITHIN_S)
    except (UnavailableError, huggingface_hub.errors.HfHubHTTPError, OSError):
        return None  # the learner says why when it downloads the model
    return shape_of_config(read_json(Path(config)))


def plan_memory(
    shape: ModelShape, settings: Settings, placement: Placement, machine: MachineMemory, *, leader: str = "learner"
) -> RunMemory:
    """ConfigError when it cannot fit: what is needed, what there is, and the setting that would make it fit."""
    engine = engine_memory(shape, settings, on_gpu=placement.generators is not None)
    others = SERVICES_BYTES + settings.generator.count * engine.host
    if settings.generator.count:
        others += shape.published_bytes  # the copy that the generators of this host share
    _check_host(others, settings, engine, machine)
    room = _learner_room(settings, placement, machine, engine, others) if leader == "learner" else None
    learner = mode = fraction = None
    if room is not None:
        check_fits(shape, settings, room)
        learner, mode = estimate(shape, settings, room), recomputation_of(shape, settings, room)
        fraction = _shared_fraction(settings, placement, machine, learner)
    elif placement.shared and settings.generator.memory_fraction is None:
        raise _share_unknown("nvidia-smi does not tell the GPU's size")
    host = others
    if placement.learner:
        offloaded = OFFLOADED_BYTES if settings.training.optimizer_offload else 0
        of_each = (CHECKPOINT_BYTES + offloaded) * shape.parameters // ranks_that_share(
            settings
        ) + LEARNER_LIBRARIES_BYTES
        host += settings.training.ranks_per_node * of_each
        host += PUBLISHED_COPIES * shape.published_bytes
    elif learner is not None:
        host += settings.training.ranks_per_node * learner.total
    _check_host(host, settings, engine, machine)
    return RunMemory(
        learner,
        engine,
        host,
        _sequences(settings, placement, machine, engine, fraction),
        mode,
        memory_fraction=fraction,
        learner_share=None if fraction is None else _learner_share(machine.gpus[placement.learner[0]], fraction),
    )


def engine_memory(shape: ModelShape, settings: Settings, *, on_gpu: bool) -> EngineMemory:
    """Of one generator, without the published weights, which it shares with the others of the host.

    A scripted engine computes nothing, and keeps the weights.
    """
    generator = settings.generator
    if generator.engine != "vllm":
        return EngineMemory(device=0, host=shape.published_bytes + LIGHT_BYTES, sequence=0)
    auto = shape.published_bytes / shape.parameters if on_gpu else FLOAT32_BYTES
    value = VALUE_BYTES.get(generator.dtype, auto)
    weights = math.ceil(shape.parameters * value / generator.tensor_parallel)
    sequence = math.ceil(shape.kv_values * value * settings.longest_sequence / generator.tensor_parallel)
    if on_gpu:
        return EngineMemory(weights + ENGINE_WORK_BYTES, host=ENGINE_LIBRARIES_BYTES, sequence=sequence)
    cache = int(generator.cpu_cache_gib * GIB)
    return EngineMemory(0, host=weights + cache + ENGINE_LIBRARIES_BYTES, sequence=sequence)


def _learner_room(
    settings: Settings, placement: Placement, machine: MachineMemory, engine: EngineMemory, others: int
) -> Room | None:
    """What the ranks have, after what others need at least; None for GPUs whose size is not known."""
    if not placement.learner:
        return Room("cpu", machine.host.limit - others)
    if not all(gpu in machine.gpus for gpu in placement.learner):
        return None
    size = min(machine.gpus[gpu] for gpu in placement.learner)
    if not placement.shared:
        return Room("cuda", size, devices=placement.most_ranks)
    fraction = settings.generator.memory_fraction
    engine_bytes = engine.device + engine.sequence if fraction is None else math.ceil(size * fraction)
    return Room("cuda", size - engine_bytes)


def _shared_fraction(
    settings: Settings, placement: Placement, machine: MachineMemory, learner: RankMemory
) -> float | None:
    """The engine's share of a GPU that the learner computes on, too: what that leaves, rounded down to hundredths."""
    if not placement.shared:
        return None
    if settings.generator.memory_fraction is not None:
        return settings.generator.memory_fraction
    size = machine.gpus[placement.learner[0]]
    return min(math.floor(100 * (size - learner.total) / size) / 100, settings.generator.share_of_gpu)


def _learner_share(size: int, fraction: float) -> float:
    """What the engine leaves, without what CUDA's libraries take of it: torch's cap does not count them."""
    return max(0.0, round(1 - fraction - LIBRARIES_BYTES["cuda"] / size, 3))


def _share_unknown(reason: str) -> ConfigError:
    return ConfigError(
        f"learner and generator share one GPU, and {reason}",
        hint="set generator.memory_fraction to the share of the GPU that the engine may take, such as 0.3",
    )


def _sequences(
    settings: Settings, placement: Placement, machine: MachineMemory, engine: EngineMemory, fraction: float | None
) -> int | None:
    """How many of the longest sequences an engine's cache holds; ConfigError when it holds none."""
    if not engine.sequence:
        return None
    if placement.generators is None:
        cache, larger = int(settings.generator.cpu_cache_gib * GIB), "raise generator.cpu_cache_gib"
    elif gpus := [machine.gpus[gpu] for group in placement.generators for gpu in group if gpu in machine.gpus]:
        share = settings.generator.share_of_gpu if fraction is None else fraction
        cache, larger = int(min(gpus) * share) - engine.device, "raise generator.tensor_parallel"
    else:
        return None
    if cache < engine.sequence:
        raise ConfigError(
            f"a generator's KV cache has {max(0, cache) / GIB:.2f} GiB beside {engine.device / GIB:.1f} GiB for the "
            f"engine, and one sequence of {settings.longest_sequence} tokens takes {engine.sequence / GIB:.2f} GiB",
            hint=f"{larger}, or lower sampling.max_response_tokens",
        )
    return cache // engine.sequence


def _check_host(needed: int, settings: Settings, engine: EngineMemory, machine: MachineMemory) -> None:
    limit, count = machine.host.limit, settings.generator.count
    if needed <= limit:
        return
    fewer = (limit - (needed - count * engine.host)) // engine.host
    raise ConfigError(
        f"the parts of the run need {needed / GIB:.1f} GiB of the host's memory, and there are {limit / GIB:.1f} GiB: "
        f"{count} generators take {engine.host / GIB:.1f} GiB each",
        hint=f"generator.count = {fewer} would fit" if fewer > 0 else "take a smaller model, or a larger machine",
    )
