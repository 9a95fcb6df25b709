"""The status as Prometheus metrics, from the same snapshot that people see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.api.error_responses import may_answer
from services.api.status import StatusReader
from services.bottleneck import Bottleneck
from services.contracts import Heartbeat, StatusSnapshot

RUN_GAUGES = {
    "round": "Round in progress",
    "rounds_total": "Rounds of the whole run",
    "weight_version": "Newest published version",
    "tasks_queued": "Tasks that wait for a generator",
    "tasks_leased": "Tasks that a generator holds",
    "rollouts_queued": "Rollouts that no durable checkpoint contains yet",
    "dead_letters": "Entries set aside because they could not be processed",
    "oldest_task_s": "Age of the oldest open task in seconds",
}
"""Fields of StatusSnapshot that become sept_<field>."""

PART_GAUGES = {
    "weight_version": "Version that the part serves or trains",
    "in_flight": "Requests in the engine, or rollouts held for the round",
    "tokens_per_s": "Tokens per second over the last ten seconds",
    "updates": "Weight updates since the part started",
    "pause_ms": "How long generation stood still for the last update",
    "sync_s": "From hearing of the last version to serving it, in seconds",
    "sync_bytes": "Bytes fetched for the last update",
    "line_bytes_per_s": "Bytes per second of the last long download of weights",
}
"""Fields of Heartbeat that become sept_part_<field>{part, part_id}."""


BOTTLENECK_GAUGES = {
    "suggested_generators": "Generators that would balance the run; missing while the present number is right",
    "learner_wait_ratio": "Share of the last rounds' time that the learner waited for rollouts",
    "generator_idle_ratio": "Share of time that the living generators waited for tasks, mean",
}
"""Fields of Bottleneck that become sept_<field>."""


class SnapshotCollector(Collector):
    """Gauges of one snapshot and of what limits the run."""

    def __init__(self, snapshot: StatusSnapshot, bottleneck: Bottleneck) -> None:
        self._snapshot = snapshot
        self._bottleneck = bottleneck

    def collect(self) -> Iterable[Metric]:
        snapshot = self._snapshot
        for source, gauges in ((snapshot, RUN_GAUGES), (self._bottleneck, BOTTLENECK_GAUGES)):
            for field, text in gauges.items():
                value = getattr(source, field)
                if value is not None:
                    yield GaugeMetricFamily(f"sept_{field}", text, value)
        if snapshot.generators_target is not None:
            text = "Generators that were asked for"
            yield GaugeMetricFamily("sept_generators_target", text, snapshot.generators_target)
        state = GaugeMetricFamily("sept_state", "1 for the state that the run is in", labels=["state"])
        state.add_metric([snapshot.state], 1)
        yield state
        yield from self._parts()
        yield from self._last_round()

    def _parts(self) -> Iterator[Metric]:
        parts = [(status.heartbeat, status.lost) for status in self._snapshot.generators]
        if self._snapshot.learner is not None:
            parts.append((self._snapshot.learner, self._snapshot.learner_lost))
        for field, text in PART_GAUGES.items():
            gauge = GaugeMetricFamily(f"sept_part_{field}", text, labels=["part", "part_id"])
            for beat, _ in parts:
                value = getattr(beat, field)
                if value is not None:
                    gauge.add_metric(_labels(beat), value)
            yield gauge
        up = GaugeMetricFamily("sept_part_up", "1 while its heartbeats arrive", labels=["part", "part_id"])
        share = GaugeMetricFamily("sept_part_share", "Share of time in a state", labels=["part", "part_id", "state"])
        for beat, lost in parts:
            up.add_metric(_labels(beat), 0 if lost else 1)
            for state, value in beat.shares.items():
                share.add_metric([*_labels(beat), state], value)
        yield from (up, share)

    def _last_round(self) -> Iterator[Metric]:
        """Every number of the last line of metrics.jsonl."""
        last = self._snapshot.last_round
        for field, value in last.model_dump().items() if last else ():
            if isinstance(value, int | float) and field.isidentifier():
                yield GaugeMetricFamily(f"sept_last_round_{field}", f"{field} of the last round", value)


def _labels(beat: Heartbeat) -> list[str]:
    return [beat.part.value, beat.part_id]


def metrics_router(reader: StatusReader) -> APIRouter:
    """GET /metrics."""
    router = APIRouter(tags=["status"])

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **may_answer(409, 422, 503)},
    )
    async def metrics() -> Response:
        """The status in Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(SnapshotCollector(*await reader.read_with_bottleneck()))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
