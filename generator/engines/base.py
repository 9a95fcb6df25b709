"""What the generator asks of an inference engine: the protocol, and the types that cross it.

Every engine passes the same contract tests (tests/generator/engines/test_engine_contract.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from services.contracts import Task, VersionSpan

if TYPE_CHECKING:
    from services.weights.mirror import WeightUpdate


Paused = Callable[[], AbstractContextManager[None]]
"""Opens a context that lasts for as long as generation is paused, so that the caller can account for the time."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished response. Producer: engine. Consumer: `generator.leases`, which makes a rollout of it."""

    response_tokens: list[int]
    """[R] token ids, the stop token included when there was one; R >= 1."""
    finish_reason: Literal["stop", "length"]
    spans: tuple[VersionSpan, ...]
    """Cover 0 .. R without gap or overlap, versions strictly ascending."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine was at its last step. Producer: engine. Consumer: `generator.flow`."""

    running: int
    """Sequences that are being decoded."""
    waiting: int
    """Sequences that are queued in the engine."""
    cache_used: float
    """Share of the KV cache in use, 0 .. 1."""
    preemptions: int
    """How often, since the start, a sequence was evicted from the KV cache and had to be computed again."""
    fits: int
    """Sequences of the greatest length that the KV cache holds at once; more of the usual length."""


class Engine(Protocol):
    """Takes token ids and returns responses with their weight versions; weights change while requests are in flight.

    Any method may raise EngineError; after the engine has died, every one does, at once.
    """

    @property
    def device(self) -> str:
        """The device that it computes on, for display: "cpu", "NVIDIA H200"."""

    @property
    def precision(self) -> str:
        """The type that it computes in: "float32", "bfloat16", "float16"."""

    async def start(self, model_folder: Path, version: int) -> None:
        """Serve the Hugging Face folder (config.json, model.safetensors), whose weights are `version`."""

    async def generate(self, task: Task, sample: int) -> Completion:
        """Sample one response to the task's prompt; cancelling aborts the request.

        The first token is always sampled by the weights that read the prompt. Later tokens may come from later
        versions, as the spans say.
        """

    async def apply(self, update: WeightUpdate, paused: Paused = nullcontext) -> float:
        """Serve another version; returns the seconds for which generation was paused, all within a `paused()`.

        Requests in flight keep their tokens and their KV. Only when the version is not newer than the served one
        (the learner was rolled back, or published a version again) do they start over: spans never descend.
        After an EngineError the weights are undefined and the engine serves no more.
        """

    async def score(self, tokens: Sequence[int]) -> list[float] | None:
        """[T - 1] log-probability of each of T tokens after the first, given those before it, by the weights served.

        Generation continues meanwhile. The list is shorter where the engine has no room for T tokens. None where the
        engine computes no probabilities.
        """

    def load(self) -> EngineLoad:
        """How busy the engine was at its last step."""

    async def checksums(self) -> dict[str, str] | None:
        """BLAKE3 of each tensor as served, in checkpoint coordinates and types; None where that cannot be computed."""

    async def stop(self) -> None:
        """End the engine and its processes; does nothing when it never started or has died."""


def version_spans(versions: Iterable[int]) -> tuple[VersionSpan, ...]:
    """Spans of a response from the version of each of its tokens.

    >>> version_spans([3, 3, 4])
    (VersionSpan(weight_version=3, start=0, end=2), VersionSpan(weight_version=4, start=2, end=3))
    """
    spans: list[VersionSpan] = []
    for position, version in enumerate(versions):
        start = spans.pop().start if spans and spans[-1].weight_version == version else position
        spans.append(VersionSpan(weight_version=version, start=start, end=position + 1))
    return tuple(spans)
