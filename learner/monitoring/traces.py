"""Exports an OpenTelemetry trace of every task, from its issue to the end of its training.

The learner exports the whole trace once a round is trained: rollouts carry the times of what happened in other
processes, so no trace context is passed between processes. This module is imported only if traces are configured.
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
"""Most spans that wait for the collector; then the oldest are dropped. Five spans a task, so about 6,500 tasks."""
FLUSH_S = 3.0
"""How long a learner that ends goes on sending spans."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _TaskTrace:
    """A task whose training has begun."""

    rollouts: list[Rollout]
    completed_at: float
    """Unix seconds, as `taken_at`."""
    taken_at: float


class Traces:
    """Collects traces of tasks and exports them; a failing exporter neither delays nor ends the training.

    traces.rollout_taken(rollout, completed_at)     when the trainer takes a rollout, in any order
    traces.round_trained(round_)                    exports the traces of the tasks taken since the last call
    """

    def __init__(self, run_id: str, exporter: SpanExporter | None = None) -> None:
        """By default the exporter is configured by OTEL_* variables."""
        self._run_id = run_id
        self._ids = _RepeatableIds()
        name = os.environ.get("OTEL_SERVICE_NAME") or "sept"
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": name, "sept.run_id": run_id}),
            id_generator=self._ids,
            shutdown_on_exit=False,  # `close` does that, within a deadline
        )
        processor = BatchSpanProcessor(exporter or _otlp_exporter(), max_queue_size=MAX_WAITING_SPANS)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("sept")
        self._tasks: dict[tuple[str, int], _TaskTrace] = {}  # by task id and index in the round

    def rollout_taken(self, rollout: Rollout, completed_at: float) -> None:
        """Note that the trainer takes the rollout now; it was completed at `completed_at`, in Unix seconds."""
        task = self._tasks.setdefault((rollout.task_id, rollout.position), _TaskTrace([], completed_at, time.time()))
        task.rollouts.append(rollout)

    def round_trained(self, round_: int) -> None:
        """Export the tasks taken since the last call: round `round_`, which ends now, has trained them."""
        now = time.time()
        for task in self._tasks.values():
            self._export(task, round_, now)
        self._tasks.clear()

    def close(self) -> None:
        """Send what is left, as far as the collector accepts it within `FLUSH_S`."""
        flush = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        flush.start()
        flush.join(FLUSH_S)
        if flush.is_alive():
            log.warning("traces_not_sent", waited_s=FLUSH_S)

    def _export(self, task: _TaskTrace, round_: int, trained_at: float) -> None:
        first = task.rollouts[0]
        leased_at = task.completed_at - first.generate_s
        times = [max(0.0, leased_at - first.queued_s), leased_at, task.completed_at, task.taken_at, trained_at]
        # Redis' clock up to the completion, then the learner's: if they differ, no span ends before it begins.
        issued, *_, ended = moments = [round(moment * 1e9) for moment in accumulate(times, max)]
        self._ids.restart(f"{self._run_id} {first.task_id} {task.completed_at} {round_} {first.position}")
        identity: dict[str, AttributeValue] = {
            "sept.task_id": first.task_id,
            "sept.round": first.round,
            "sept.position": first.position,
        }
        root = self._tracer.start_span("task", Context(), attributes=identity, start_time=issued)
        within = set_span_in_context(root, Context())
        stages: dict[str, dict[str, AttributeValue]] = {
            "queued": {},
            "generating": _sampling_attributes(task.rollouts),
            "waiting_for_training": {},
            "training": {"sept.round": round_, "sept.weight_version": round_ + 1},
        }
        for (name, attributes), (start, end) in zip(stages.items(), pairwise(moments), strict=True):
            self._tracer.start_span(name, within, attributes=attributes, start_time=start).end(end)
        root.end(ended)


def _otlp_exporter() -> SpanExporter:
    """Configured by OTEL_* variables. Logs every lost batch, not every failed attempt."""
    logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.ERROR)
    return OTLPSpanExporter()


def _sampling_attributes(rollouts: Sequence[Rollout]) -> dict[str, AttributeValue]:
    """Attributes of the span in which a task was sampled."""
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
    """Ids derived from a name, so that a learner that trains the same rollouts again exports the same trace again."""

    def __init__(self) -> None:
        self._random = Random()

    def restart(self, name: str) -> None:
        """Begin the ids of the trace with this name."""
        self._random.seed(name)

    def generate_trace_id(self) -> int:
        return self._random.getrandbits(128) or 1

    def generate_span_id(self) -> int:
        return self._random.getrandbits(64) or 1
