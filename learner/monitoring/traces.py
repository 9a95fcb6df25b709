"""Owns what a collector of OpenTelemetry traces is told: a trace a task, from its issue to the end of its training.

Knows neither queue nor model. The learner tells all of it, once a round is trained: when something happened in another
process it knows from the times that every rollout carries, so nothing more travels between the parts. Of this module
and what it imports nothing is loaded unless traces are wanted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from random import Random

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import set_span_in_context
from opentelemetry.util.types import AttributeValue

from services.contracts import Rollout

MAX_WAITING_SPANS = 1 << 15
"""What waits for the collector at most; the oldest go first. Five spans a task, so about 6,500 tasks."""
FLUSH_S = 3.0
"""How long an ending learner goes on telling what is left."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Life:
    """A task whose training has begun."""

    rollouts: list[Rollout]
    completed_at: float
    """Unix seconds, as `taken_at`."""
    taken_at: float


class Traces:
    """Tells the lives of tasks to an exporter, which never holds up or ends the training.

    traces.taken(rollout, completed_at)      the trainer takes it, in whatever order
    traces.trained(round_)                   those are trained: their traces are told
    """

    def __init__(self, run_id: str, exporter: SpanExporter | None = None) -> None:
        """To where OTEL_* variables say, unless an exporter is given."""
        self._run_id = run_id
        self._ids = _RepeatableIds()
        name = os.environ.get("OTEL_SERVICE_NAME") or "sept"
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": name, "sept.run_id": run_id}),
            id_generator=self._ids,
            shutdown_on_exit=False,  # `close` does that, within a deadline
        )
        processor = BatchSpanProcessor(exporter or _to_collector(), max_queue_size=MAX_WAITING_SPANS)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("sept")
        self._lives: dict[tuple[str, int], _Life] = {}  # by task and place in the round

    def taken(self, rollout: Rollout, completed_at: float) -> None:
        """The trainer takes the rollout now; it was handed in at `completed_at`, in Unix seconds."""
        life = self._lives.setdefault((rollout.task_id, rollout.index), _Life([], completed_at, time.time()))
        life.rollouts.append(rollout)

    def trained(self, round_: int) -> None:
        """Tell of all tasks taken since the last call: round `round_`, which ends now, has trained them."""
        now = time.time()
        for life in self._lives.values():
            self._tell(life, round_, now)
        self._lives.clear()

    def close(self) -> None:
        """Hand over what is left, as far as the collector takes it within `FLUSH_S`."""
        flush = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        flush.start()
        flush.join(FLUSH_S)
        if flush.is_alive():
            log.warning("traces_not_sent", waited_s=FLUSH_S)

    def _tell(self, life: _Life, round_: int, trained_at: float) -> None:
        first = life.rollouts[0]
        leased_at = life.completed_at - first.generate_s
        times = [max(0.0, leased_at - first.queued_s), leased_at, life.completed_at, life.taken_at, trained_at]
        # Redis' clock up to the completion, then the learner's: where they differ, nothing ends before it began.
        issued, *_, ended = moments = [round(moment * 1e9) for moment in accumulate(times, max)]
        self._ids.restart(f"{self._run_id} {first.task_id} {life.completed_at} {round_} {first.index}")
        task: dict[str, AttributeValue] = {
            "sept.task_id": first.task_id,
            "sept.round": first.round,
            "sept.index": first.index,
        }
        root = self._tracer.start_span("task", Context(), attributes=task, start_time=issued)
        within = set_span_in_context(root, Context())
        stages: dict[str, dict[str, AttributeValue]] = {
            "queued": {},
            "generating": _generated(life.rollouts),
            "waiting_for_training": {},
            "training": {"sept.round": round_, "sept.weight_version": round_ + 1},
        }
        for (name, attributes), (start, end) in zip(stages.items(), pairwise(moments), strict=True):
            self._tracer.start_span(name, within, attributes=attributes, start_time=start).end(end)
        root.end(ended)


def _to_collector() -> SpanExporter:
    """To where OTEL_* variables say. Of one that is away every lost batch is logged, and not every attempt."""
    logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.ERROR)
    return OTLPSpanExporter()


def _generated(rollouts: Sequence[Rollout]) -> dict[str, AttributeValue]:
    """What is known of the sampling of one task."""
    return {
        "sept.generator_id": rollouts[0].generator_id,
        "sept.temperature": rollouts[0].temperature,
        "sept.samples": len(rollouts),
        "sept.prompt_tokens": int(rollouts[0].prompt_tokens.size),
        "sept.response_tokens": sum(int(rollout.response_tokens.size) for rollout in rollouts),
        "sept.weight_versions": sorted({span.weight_version for rollout in rollouts for span in rollout.spans}),
        "sept.staleness": max(rollout.staleness for rollout in rollouts),
    }


class _RepeatableIds(IdGenerator):
    """Ids that follow from a name, so that a learner that trains the same rollouts again tells the same trace again."""

    def __init__(self) -> None:
        self._random = Random()

    def restart(self, name: str) -> None:
        """The next ids are those of the trace of this name."""
        self._random.seed(name)

    def generate_trace_id(self) -> int:
        return self._random.getrandbits(128) or 1

    def generate_span_id(self) -> int:
        return self._random.getrandbits(64) or 1
