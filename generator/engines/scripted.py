"""An engine that answers from a formula instead of a model: for tests of everything around it, without torch or vLLM.

A response depends only on the task id and the sample (and on the weights with `follows_weights`), never on timing, the
number of generators or other requests. Weights are stored and updated as in a real engine, so that their digests can be
compared. The spans of a response name the versions that were served while it grew.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from blake3 import blake3

from generator.engines.base import Completion, EngineLoad, Paused, version_spans
from services.contracts import Task
from services.errors import EngineError
from services.tensors import RawTensor, Tensors, describe, digest_bytes, read_safetensors, version_digest
from services.weights import delta

if TYPE_CHECKING:
    from services.weights.mirror import WeightUpdate

VOCABULARY = 256
"""Scripted token ids lie below this, and below the vocabulary of a smaller model."""


class ScriptedEngine:
    """Emits one token per request and step.

    ScriptedEngine()                            as fast as the event loop runs
    ScriptedEngine(step_s=0.01)                 100 tokens/s and request
    ScriptedEngine(follows_weights=True)        other weights give other answers
    ScriptedEngine(cache_tokens=1000)           a KV cache of 1000 tokens, with preemptions when it is full
    ScriptedEngine(scores=True)                 log-probabilities by a formula (see `scripted_log_probs`)
    """

    device = "scripted"
    precision = "float32"

    def __init__(
        self,
        *,
        step_s: float = 0.0,
        max_in_flight: int = 64,
        follows_weights: bool = False,
        cache_tokens: int | None = None,
        scores: bool = False,
    ) -> None:
        self._step_s = step_s
        self._free_slots = asyncio.Semaphore(max_in_flight)
        self._max_in_flight = max_in_flight
        self._follows_weights = follows_weights
        self._scores = scores
        self._version: int | None = None
        self._tensors: dict[str, RawTensor] = {}
        self._digest = ""
        self._vocabulary = VOCABULARY
        self._running = self._waiting = self._preemptions = 0
        self._cache_tokens = cache_tokens
        self._cached: dict[object, int] = {}
        """Tokens of each sequence in the cache."""
        self._restarts = 0
        self._stop_reason: str | None = "it was not started"

    async def start(self, model_folder: Path, version: int) -> None:
        """A folder without model.safetensors counts as a model without tensors, one without config.json as large."""
        weights, config = model_folder / "model.safetensors", model_folder / "config.json"
        if config.exists():
            self._vocabulary = min(VOCABULARY, json.loads(config.read_text()).get("vocab_size", VOCABULARY))
        self._set_tensors(read_safetensors(weights) if weights.exists() else {})
        self._version, self._stop_reason = version, None

    async def generate(self, task: Task, sample: int) -> Completion:
        self._waiting += 1
        try:
            await self._free_slots.acquire()
        finally:
            self._waiting -= 1
        self._running += 1
        try:
            return await self._respond(task, sample)
        finally:
            self._running -= 1
            self._cached.pop((task.task_id, sample), None)
            self._free_slots.release()

    async def apply(self, update: WeightUpdate, paused: Paused = nullcontext) -> float:
        started = time.monotonic()
        with paused():
            self._replace(update)
        return time.monotonic() - started

    def _replace(self, update: WeightUpdate) -> None:
        served = self._served_version()
        known = self._tensors if update.patches is not None else update.tensors
        tensors = {name: _writable(tensor) for name, tensor in known.items()}
        for patch in update.patches or ():
            delta.apply(patch, tensors[patch.name].data)
        self._set_tensors(tensors)
        self._version = update.manifest.weight_version
        if self._version <= served:
            self._restarts += 1

    async def score(self, tokens: Sequence[int]) -> list[float] | None:
        self._served_version()
        return scripted_log_probs(self._tensors, tokens) if self._scores else None

    def load(self) -> EngineLoad:
        """With a KV cache it reports that one sequence fits: it has no greatest length to compute the number from."""
        cache_used, fits = 0.0, self._max_in_flight
        if self._cache_tokens is not None:
            cache_used, fits = sum(self._cached.values()) / self._cache_tokens, 1
        return EngineLoad(self._running, self._waiting, cache_used, self._preemptions, fits)

    async def checksums(self) -> dict[str, str] | None:
        return {name: digest_bytes(tensor.data) for name, tensor in self._tensors.items()}

    async def stop(self) -> None:
        self.die("it was stopped")

    def die(self, reason: str) -> None:
        """Behave like an engine whose process has ended."""
        self._stop_reason = reason

    def _set_tensors(self, tensors: Tensors) -> None:
        self._tensors = dict(tensors)
        self._digest = version_digest(describe(tensors)) if self._follows_weights else ""

    def _served_version(self) -> int:
        if self._stop_reason is not None or self._version is None:
            raise EngineError(f"the scripted engine serves no requests: {self._stop_reason}")
        return self._version

    async def _respond(self, task: Task, sample: int) -> Completion:
        tokens: list[int] = []
        versions: list[int] = []
        restarts = self._restarts
        while True:
            if restarts != self._restarts:
                restarts = self._restarts
                tokens, versions = [], []
            if self._cache_tokens is not None:
                await self._reserve_cache(
                    (task.task_id, sample), task.prompt_tokens.size + len(tokens) + 1, self._cache_tokens
                )
            versions.append(self._served_version())
            tokens.append(self._token(task, sample, len(tokens)))
            finish_reason = _finish_reason(task, tokens)
            if finish_reason is not None:
                return Completion(tokens, finish_reason, version_spans(versions))
            await asyncio.sleep(self._step_s)

    async def _reserve_cache(self, sequence: object, tokens: int, limit: int) -> None:
        """Reserve `tokens` in the cache for the sequence; while they do not fit, evict it and wait."""

        def full() -> bool:
            return sum(self._cached.values()) - self._cached.get(sequence, 0) + tokens > limit

        if full():
            self._preemptions += self._cached.pop(sequence, 0) > 0
            self._running -= 1
            self._waiting += 1
            try:
                while full():  # noqa: ASYNC110 - checked once a step, as by an engine's scheduler
                    await asyncio.sleep(self._step_s)
            finally:
                self._running += 1
                self._waiting -= 1
        self._cached[sequence] = tokens

    def _token(self, task: Task, sample: int, position: int) -> int:
        """The token at that position: at a scripted length, the task's stop token when it has one."""
        seed = 0 if task.temperature == 0 else sample
        length = 1 + _hash_below(f"{task.task_id} {seed} length", task.max_response_tokens)
        if task.stop_token_ids and position + 1 == length:
            return task.stop_token_ids[0]
        return _hash_below(f"{task.task_id} {seed} {position} {self._digest}", self._vocabulary)


def scripted_log_probs(tensors: Tensors, tokens: Sequence[int]) -> list[float]:
    """[T - 1] what `score` of a scripted engine with these weights returns for T tokens."""
    digest = version_digest(describe(tensors))
    return [-_hash_below(f"{digest} {tokens[: end + 1]}", 10_000) / 1e3 for end in range(1, len(tokens))]


def _finish_reason(task: Task, tokens: list[int]) -> Literal["stop", "length"] | None:
    if tokens[-1] in task.stop_token_ids:
        return "stop"
    return "length" if len(tokens) == task.max_response_tokens else None


def _hash_below(key: str, limit: int) -> int:
    """A pseudo-random number in 0 .. limit-1 that depends on the key alone."""
    return int.from_bytes(blake3(key.encode()).digest(length=8), "little") % limit


def _writable(tensor: RawTensor) -> RawTensor:
    return RawTensor(tensor.dtype, tensor.shape, np.array(tensor.data))
