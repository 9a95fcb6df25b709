"""What one rank of a learner needs on its device at the highest moment of training, from sizes and settings.

The highest moment is the backward pass of a step's second micro-batch: weights, gradients and moments are there, the
activations of all layers, and what either the last layer with its loss or one decoder layer computes with (the larger
of the two). P parameters on n ranks, T tokens fed of which up to T are response tokens, V vocabulary, H hidden size:

    weights                float32 (Micikevicius et al., arXiv 1710.03740)            4 P / n
    gradients              float32                                                    4 P / n
    moments                two of AdamW, float32 or of 8 bits                         8 P / n or 2 P / n
    gathered               what FSDP2 gathers of two layers at a time, with the gradient of one that it sums
    activations            what each layer keeps for its backward: `KEPT`             T x layers x ...
    layer, loss            what a layer's backward or the loss computes with: `WORK`, `LOGIT_BYTES`
    libraries              code, CUDA's context, cuBLAS's and NCCL's buffers

The numbers of bytes for each value are counted, not guessed: `tests/learner/memory` holds the estimate against what the
learner's own step allocates on fake CUDA devices, and against resident memory on CPU.
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
    ("cuda", "off"): Widths(hidden=26, queries=4, keys=4, mlp=8),
    ("cuda", "light"): Widths(hidden=8, queries=4, keys=4, mlp=4),
    ("cuda", "full"): Widths(hidden=4, queries=0, keys=0, mlp=0),
    ("cpu", "off"): Widths(hidden=36, queries=12, keys=12, mlp=16),
    ("cpu", "light"): Widths(hidden=12, queries=8, keys=8, mlp=8),
    ("cpu", "full"): Widths(hidden=4, queries=0, keys=0, mlp=0),
}
"""What a layer keeps until its backward."""
WORK: dict[tuple[Device, Recomputation], Widths] = {
    ("cuda", "off"): Widths(hidden=16, queries=4, keys=4, mlp=6),
    ("cuda", "light"): Widths(hidden=36, queries=8, keys=8, mlp=12),
    ("cuda", "full"): Widths(hidden=40, queries=8, keys=8, mlp=14),
    ("cpu", "off"): Widths(hidden=16, queries=8, keys=8, mlp=12),
    ("cpu", "light"): Widths(hidden=40, queries=12, keys=12, mlp=20),
    ("cpu", "full"): Widths(hidden=48, queries=16, keys=16, mlp=28),
}
"""What the backward of one layer takes besides: what is computed again, and gradients."""
HEAD_BYTES: dict[Device, float] = {"cuda": 20, "cpu": 24}
"""For each hidden value of a token: the last norm, the rows that predict, and their gradients."""
LOGIT_BYTES: dict[Device, float] = {"cuda": 20, "cpu": 20}
"""For each logit of a slice: itself, its softmax, and their gradients."""
SLICE_LOGITS: dict[Device, int] = {"cuda": 1 << 27, "cpu": 1 << 22}
"""`learner.model.vocabulary_loss` holds so many logits at once."""
ENTROPY_LOGIT_BYTES = 12
"""More for each logit where the loss is an entropy: probabilities, their products, and a gradient."""
LIBRARIES_BYTES: dict[Device, int] = {"cuda": 3 << 29, "cpu": 1 << 29}
PUBLISHED_COPIES = 2
"""On CPU the version that is published and the one before it lie in the learner's memory."""


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes at the highest moment, by what takes them."""

    weights: int
    gradients: int
    moments: int
    gathered: int
    activations: int
    working: int
    """Of the loss or of one layer's backward, whichever is more."""
    published: int
    """Copies of versions, on CPU: with a GPU they are in the host's memory."""
    libraries: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def tensors(self) -> int:
        """All but libraries."""
        return self.total - self.libraries


def estimate_rank(
    shape: ModelShape, settings: LearnerSettings, *, device: Device, recomputation: Recomputation
) -> RankMemory:
    """Of the rank that needs most: rank 0, which publishes."""
    training, ranks = settings.training, settings.training.ranks
    trained = adapter_parameters(shape, settings.lora.rank) if settings.lora.rank else shape.parameters
    frozen = shape.parameters if settings.lora.rank else 0
    tokens = tokens_at_once(settings)
    return RankMemory(
        weights=_share(FLOAT32_BYTES * (trained + frozen), ranks),
        gradients=_share(FLOAT32_BYTES * trained, ranks),
        moments=_share(MOMENT_BYTES[training.optimizer] * trained, ranks),
        gathered=_gathered(shape, ranks, trains_all=not frozen),
        activations=_activations(shape, tokens, device, recomputation),
        working=max(
            _loss(shape, tokens, training.algorithm, device, trains_head=not frozen),
            round(tokens * WORK[device, recomputation].bytes_of(shape)),
        ),
        published=PUBLISHED_COPIES * shape.published_bytes if device == "cpu" else 0,
        libraries=LIBRARIES_BYTES[device],
    )


def tokens_at_once(settings: LearnerSettings) -> int:
    """Most tokens that a rank feeds in one micro-batch: the budget, or one sequence that is longer, or a whole step."""
    training, longest = settings.training, settings.longest_sequence
    sequences = training.prompts_per_round // training.steps_per_round * settings.sampling.rollouts_per_prompt
    return max(longest, min(training.micro_batch_tokens, sequences * longest))


def adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Of adapters on all linear layers: rank x (inputs + outputs) of each."""
    attention = 2 * (shape.hidden + shape.queries) + 2 * (shape.hidden + shape.keys)
    return shape.layers * rank * (attention + 3 * (shape.hidden + shape.mlp))


def _share(total_bytes: int, ranks: int) -> int:
    return math.ceil(total_bytes / ranks)


def _gathered(shape: ModelShape, ranks: int, *, trains_all: bool) -> int:
    """The weights of two layers and of the last group, and a layer's gradient before and after it is summed."""
    if ranks == 1:
        return 0
    root = shape.embedding + shape.head
    gradient = FLOAT32_BYTES * (shape.layer + root) if trains_all else 0
    return FLOAT32_BYTES * (2 * shape.layer + root) + gradient


def _activations(shape: ModelShape, tokens: int, device: Device, recomputation: Recomputation) -> int:
    kept = tokens * shape.layers * KEPT[device, recomputation].bytes_of(shape)
    cast = BFLOAT16_BYTES * shape.layer * shape.layers if (device, recomputation) == ("cuda", "off") else 0
    return round(kept) + cast


def _loss(shape: ModelShape, tokens: int, algorithm: str, device: Device, *, trains_head: bool) -> int:
    """The last layer's weight as it computes, its gradient, hidden states, and one slice of logits."""
    of_logit = LOGIT_BYTES[device] + (ENTROPY_LOGIT_BYTES if algorithm == "entropy" else 0)
    logits = min(tokens * shape.vocabulary, SLICE_LOGITS[device])
    head = shape.vocabulary * shape.hidden
    weight = (BFLOAT16_BYTES if device == "cuda" else 0) + (FLOAT32_BYTES if trains_head else 0)
    return round(logits * of_logit + head * weight + tokens * shape.hidden * HEAD_BYTES[device])
