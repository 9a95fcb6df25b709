"""What one rank of a learner needs on its device at the highest moment of training, from sizes and settings.

The highest moment is in the backward pass of a step's second micro-batch: weights, gradients and moments are there, the
activations that all layers keep, and what either the loss or one decoder layer computes with, whichever is more. With P
parameters on n ranks that share them, T tokens in a micro-batch, V the vocabulary, H the hidden size:

    weights        float32 (Micikevicius et al., arXiv 1710.03740)                      4 P / n
    gradients      float32                                                              4 P / n
    moments        two of AdamW: in float32, in 8 bits, or in the host's memory         8, 2 or 0 P / n
    published      this rank's part of the newest version, in the type of the wire
    activations    what each layer keeps until its backward (`KEPT`)                    T for each layer
    loss           a slice of logits with their gradients, the head's gradient, hidden states
    layer          what is computed again, its gradients (`WORK`), and what FSDP2 has gathered of two layers
    libraries      code, CUDA's context, buffers of cuBLAS and NCCL

How many bytes each value takes is counted, not guessed: `tests/learner/memory` compares the estimate with what the
learner's own step allocates on fake CUDA devices, and with resident memory on CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from learner.config import LearnerSettings, Recomputation
from learner.memory.model_shape import ModelShape

Device = Literal["cuda", "cpu"]

FLOAT32_BYTES, BFLOAT16_BYTES = 4, 2
MOMENT_BYTES = {"adamw": 8, "adamw_8bit": 2}
"""Of a parameter."""


class Widths(NamedTuple):
    """Bytes for each value of a token, by what it is as wide as."""

    hidden: float
    queries: float
    keys: float
    mlp: float

    def bytes_of(self, shape: ModelShape) -> float:
        """For one token in one layer."""
        return self.hidden * shape.hidden + self.queries * shape.queries + self.keys * shape.keys + self.mlp * shape.mlp


KEPT: dict[tuple[Device, Recomputation], Widths] = {
    ("cuda", "off"): Widths(hidden=8, queries=4, keys=4, mlp=6),
    ("cuda", "light"): Widths(hidden=6, queries=4, keys=4, mlp=4),
    ("cuda", "full"): Widths(hidden=2, queries=0, keys=0, mlp=0),
    ("cpu", "off"): Widths(hidden=24, queries=8, keys=8, mlp=16),
    ("cpu", "light"): Widths(hidden=12, queries=8, keys=8, mlp=8),
    ("cpu", "full"): Widths(hidden=4, queries=0, keys=0, mlp=0),
}
"""What a layer keeps: inputs of norms, products and attention, in bf16 on CUDA and in float32 on CPU."""
WORK: dict[tuple[Device, Recomputation], Widths] = {
    ("cuda", "off"): Widths(hidden=8, queries=4, keys=4, mlp=3),
    ("cuda", "light"): Widths(hidden=16, queries=4, keys=4, mlp=5),
    ("cuda", "full"): Widths(hidden=8, queries=4, keys=4, mlp=10),
    ("cpu", "off"): Widths(hidden=16, queries=8, keys=8, mlp=16),
    ("cpu", "light"): Widths(hidden=40, queries=16, keys=16, mlp=32),
    ("cpu", "full"): Widths(hidden=40, queries=16, keys=16, mlp=32),
}
"""What the backward of one layer takes besides: what it computes again, and gradients of activations."""
LAYER_BYTES: dict[bool, float] = {False: 5, True: 7}
"""Of a layer's parameter in its backward: gathered in bf16 with its gradient; by whether there are several ranks, which
gather the next layer meanwhile and sum gradients in float32."""
HEAD_BYTES: dict[bool, float] = {False: 4, True: 8}
"""Of the head's parameter in the loss: its float32 gradient; by whether there are several ranks, which gather it."""
HIDDEN_BYTES: dict[Device, float] = {"cuda": 8, "cpu": 16}
"""Of each hidden value of a token in the loss: the last norm, the rows that predict, and their gradients."""
LOGIT_BYTES = 16
"""Of each logit of a slice: itself, its softmax, and the gradients of both, in float32."""
ENTROPY_LOGIT_BYTES = 8
"""More where the loss is an entropy: probabilities and a gradient."""
LAST_LOGIT_BYTES = 4
"""Of each logit of the slice before it, which is let go of last."""
SLICE_LOGITS: dict[Device, int] = {"cuda": 1 << 27, "cpu": 1 << 22}
"""The loss holds so many logits at once (`vocabulary_loss`)."""
WASTE: dict[Device, float] = {"cuda": 1.0, "cpu": 1.15}
"""Of what comes and goes: malloc keeps pieces between the blocks that it has given out; CUDA's segments expand."""
LIBRARIES_BYTES: dict[Device, int] = {"cuda": 3 << 29, "cpu": 5 << 27}


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes at the highest moment, by what takes them."""

    weights: int
    gradients: int
    moments: int
    activations: int
    working: int
    """Of the loss, or of one layer's backward, whichever is more."""
    published: int
    """What was published last, to be compared with; on CPU also the version that is being published."""
    libraries: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def tensors(self) -> int:
        """What training itself allocates: all but libraries and what was published."""
        return self.total - self.libraries - self.published


def estimate_rank(
    shape: ModelShape, settings: LearnerSettings, *, device: Device, recomputation: Recomputation
) -> RankMemory:
    """Of the rank that needs most: rank 0, which publishes."""
    training = settings.training
    ranks = ranks_that_share(settings)
    adapters = adapter_parameters(shape, settings.lora.rank)
    trained = adapters or shape.parameters
    frozen_bytes = _frozen_bytes(shape, device) if adapters else 0
    offloaded = training.optimizer_offload and device == "cuda"
    moments = 0 if offloaded else MOMENT_BYTES[training.optimizer]
    tokens = tokens_at_once(settings)
    kept = tokens * shape.layers * KEPT[device, recomputation].bytes_of(shape)
    loss = _loss(shape, tokens, training.algorithm, device, several=ranks > 1, trains_head=not adapters)
    layer = tokens * WORK[device, recomputation].bytes_of(shape)
    layer += shape.layer * LAYER_BYTES[ranks > 1] if device == "cuda" or ranks > 1 else 0
    return RankMemory(
        weights=math.ceil((FLOAT32_BYTES * trained + frozen_bytes) / ranks),
        gradients=math.ceil(FLOAT32_BYTES * trained / ranks),
        moments=math.ceil(moments * trained / ranks),
        activations=round(WASTE[device] * kept),
        working=round(WASTE[device] * max(loss, layer)),
        published=_published(shape, ranks, device, with_adapters=bool(adapters)),
        libraries=LIBRARIES_BYTES[device],
    )


def ranks_that_share(settings: LearnerSettings) -> int:
    """How many ranks weights, gradients and moments are shared out over."""
    training = settings.training
    return training.ranks if training.sharding == "all" else training.ranks_per_node


def tokens_at_once(settings: LearnerSettings) -> int:
    """Most tokens that a rank feeds in one micro-batch: the budget, or one sequence that is longer, or a whole step."""
    training, longest = settings.training, settings.longest_sequence
    sequences = training.prompts_per_round // training.steps_per_round * settings.sampling.rollouts_per_prompt
    return max(longest, min(training.micro_batch_tokens, sequences * longest))


def adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Of adapters on all linear layers: rank x (inputs + outputs) of each; 0 without adapters."""
    attention = 2 * (shape.hidden + shape.queries) + 2 * (shape.hidden + shape.keys)
    return shape.layers * rank * (attention + 3 * (shape.hidden + shape.mlp))


def _frozen_bytes(shape: ModelShape, device: Device) -> int:
    """Weights that adapters leave alone: on CUDA in the type in which they are published, if that is bf16."""
    in_bf16 = device == "cuda" and shape.published_bytes == BFLOAT16_BYTES * shape.parameters
    return (BFLOAT16_BYTES if in_bf16 else FLOAT32_BYTES) * shape.parameters


def _published(shape: ModelShape, ranks: int, device: Device, *, with_adapters: bool) -> int:
    """A rank keeps its part of the newest version on its device; on CPU rank 0 holds a whole version beside it."""
    kept = 0 if with_adapters else math.ceil(shape.published_bytes / ranks)
    return kept + (shape.published_bytes if device == "cpu" else 0)


def _loss(shape: ModelShape, tokens: int, algorithm: str, device: Device, *, several: bool, trains_head: bool) -> float:
    """Slices of logits, the head with its gradient, and hidden states."""
    logits, limit = tokens * shape.vocabulary, SLICE_LOGITS[device]
    of_logit = LOGIT_BYTES + (ENTROPY_LOGIT_BYTES if algorithm == "entropy" else 0)
    slices = min(logits, limit) * of_logit + (limit * LAST_LOGIT_BYTES if logits >= 2 * limit else 0)
    head = HEAD_BYTES[several] - (0 if trains_head else FLOAT32_BYTES)
    return slices + shape.vocabulary * shape.hidden * head + tokens * shape.hidden * HIDDEN_BYTES[device]
