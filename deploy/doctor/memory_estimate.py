"""How much memory a run's parts need at least, from the model's files and the settings. Loads no weights.

The learner holds P parameters in float32, their gradients and AdamW's two moments, 16 bytes each (10 with moments of 8
bits), shared out over its ranks; with adapters only the frozen weights, 4 bytes. A generator holds the weights as its
engine computes with them, the mirror of the published ones, and its KV cache, of which a token takes 2 n h d values:
keys and values of n layers with h heads of size d. Activations and libraries come on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig

from deploy.settings import Settings
from learner.model import hf_checkpoint
from services.tensors import ITEM_BYTES

FLOAT32_BYTES = 4
TRAINED_BYTES = {"adamw": 4 * FLOAT32_BYTES, "adamw_8bit": 2 * FLOAT32_BYTES + 2}
"""By optimizer: of a parameter with its gradient and its two moments."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes."""

    parameters: int
    published_bytes: int
    """Of one version."""
    kv_values_per_token: int
    """Keys and values that attention keeps of a token."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a run needs at least."""

    learner: int
    """Of each rank, on its device."""
    engine: int
    """The weights that an engine computes with, on each of its devices."""
    mirror: int
    """The published weights in the memory of a generator's host."""
    sequence: int
    """KV cache of one sequence of the longest kind, on each of the engine's devices."""


def shape_of(folder: Path) -> Shape:
    """From the headers of the weights and from config.json; ModelError when they cannot be read."""
    tensors = hf_checkpoint.stored_tensors(folder).values()
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Shape(
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        published_bytes=sum(math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype] for tensor in tensors),
        kv_values_per_token=2 * config.num_hidden_layers * heads * hf_checkpoint.head_size(config),
    )


def footprint(shape: Shape, settings: Settings, *, longest: int, cuda: bool) -> Footprint:
    """For sequences of up to `longest` tokens; `cuda` says whether engines compute on GPUs."""
    trained = FLOAT32_BYTES if settings.lora.rank else TRAINED_BYTES[settings.training.optimizer]
    value = _value_bytes(shape, settings.generator.dtype, cuda=cuda)
    return Footprint(
        learner=math.ceil(shape.parameters * trained / settings.training.ranks),
        engine=math.ceil(shape.parameters * value / settings.generator.tensor_parallel),
        mirror=shape.published_bytes,
        sequence=math.ceil(shape.kv_values_per_token * value * longest / settings.generator.tensor_parallel),
    )


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that a machine has for a run."""

    cache: int
    """KV cache of one engine, after its weights."""
    needed: int
    """The least that is needed, on the device where memory is scarcest."""
    free: int
    """What that device has."""


def room(needed: Footprint, settings: Settings, *, free: int, gpus: Sequence[int]) -> Room:
    """On GPUs (their sizes in bytes) the learner's need counts; on CPU that of all parts, in the host's `free` memory.

    One GPU is shared: the engine takes generator.memory_fraction of it, the learner has what is left.
    """
    generator = settings.generator
    if gpus:
        smallest = min(gpus)
        cache = int(smallest * generator.memory_fraction) - needed.engine
        left = int(smallest * (1 - generator.memory_fraction)) if len(gpus) == 1 else smallest
        return Room(max(0, cache), needed=needed.learner, free=left)
    cache = int(generator.cpu_cache_gib * 2**30)
    engines = generator.count * (needed.engine + needed.mirror + cache)
    return Room(cache, needed=needed.learner * settings.training.ranks + engines, free=free)


def _value_bytes(shape: Shape, dtype: str, *, cuda: bool) -> float:
    """Of a value in an engine: as published on a GPU, float32 on CPU, or what the config says."""
    if dtype == "auto":
        return shape.published_bytes / shape.parameters if cuda else FLOAT32_BYTES
    return ITEM_BYTES[hf_checkpoint.SAFETENSORS_NAMES[dtype]]
