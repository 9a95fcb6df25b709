"""What Prometheus is told is what people see, and what is not known is left out."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services import durable
from services.api.metrics import BOTTLENECK_GAUGES, PART_GAUGES, RUN_GAUGES, SnapshotCollector
from services.bottleneck import Bottleneck
from services.contracts import GeneratorStatus, Part, StatusSnapshot
from services.streams.heartbeats import AsyncHeartbeats
from tests.support.endpoint import Endpoint
from tests.support.heartbeats import heartbeat, status_of
from tests.support.recorded_run import metrics
from tests.support.weight_samples import first_version

NOTHING_KNOWN = Bottleneck(kind="unknown", reason="")

Samples = dict[tuple[str, ...], float]
"""(name, its labels' values by their names' order) -> value."""


def samples_in(text: str) -> Samples:
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def samples_of(snapshot: StatusSnapshot, bottleneck: Bottleneck = NOTHING_KNOWN) -> Samples:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot, bottleneck))
    return samples_in(generate_latest(registry).decode())


async def test_the_metrics_are_the_status(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    endpoint.store.publish(0, first_version())
    durable.write_file(endpoint.folder.metrics, metrics(4, loss=0.5).as_line() + "\n")
    for beat in (
        heartbeat(Part.LEARNER, "learner-1", "training"),
        heartbeat(Part.GENERATOR, "generator-1", "generating", weight_version=0, pause_ms=12.5),
    ):
        await AsyncHeartbeats(endpoint.redis, endpoint.keys).send(beat)
    answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = samples_in(answer.text)
    assert found[("sept_round",)] == 5
    assert found[("sept_weight_version",)] == 0
    assert found[("sept_state", "running")] == 1
    assert found[("sept_part_pause_ms", "generator", "generator-1")] == 12.5
    assert found[("sept_part_up", "learner", "learner-1")] == 1
    assert found[("sept_part_share", "generator", "generator-1", "generating")] == 1
    assert found[("sept_last_round_loss",)] == 0.5


def test_every_number_of_the_run_has_its_own_gauge() -> None:
    values = {name: float(number) for number, name in enumerate(RUN_GAUGES, start=10)}
    limits = {name: 1 + number / 16 for number, name in enumerate(BOTTLENECK_GAUGES)} | {"suggested_generators": 4}
    found = samples_of(
        status_of(generators_target=3, state="paused", **values),
        Bottleneck.model_validate({"kind": "generation", "reason": "r"} | limits),
    )
    expected = values | limits | {"generators_target": 3.0}
    assert {name: found[(f"sept_{name}",)] for name in expected} == expected
    assert [key for key in found if key[0] == "sept_state"] == [("sept_state", "paused")]


def test_every_number_of_a_part_has_its_own_gauge() -> None:
    values = {name: float(number) for number, name in enumerate(PART_GAUGES, start=10)}
    beats = [heartbeat(Part.GENERATOR, f"generator-{index}", "generating", **values) for index in range(2)]
    statuses = tuple(
        GeneratorStatus(heartbeat=beat, age_s=1.0, lost=lost) for beat, lost in zip(beats, (False, True), strict=True)
    )
    learner = heartbeat(Part.LEARNER, "learner", "training", shares={"training": 0.75, "publishing": 0.25})
    found = samples_of(status_of(generators=statuses, learner=learner, learner_lost=True))
    for name, value in values.items():
        assert [found[(f"sept_part_{name}", "generator", beat.part_id)] for beat in beats] == [value, value]
    assert found[("sept_part_up", "generator", "generator-0")] == 1
    assert found[("sept_part_up", "generator", "generator-1")] == 0
    assert found[("sept_part_up", "learner", "learner")] == 0
    assert found[("sept_part_share", "learner", "learner", "training")] == 0.75
    assert found[("sept_part_share", "learner", "learner", "publishing")] == 0.25


def test_what_is_not_known_is_left_out() -> None:
    """A gauge of 0 would be drawn and alarm somebody."""
    learner = heartbeat(Part.LEARNER, "learner", "loading")
    names = {key[0] for key in samples_of(status_of(learner=learner))}
    unknown = {"sept_weight_version", "sept_generators_target", "sept_part_weight_version"}
    unknown |= {f"sept_{name}" for name in BOTTLENECK_GAUGES}
    assert not names & unknown
    assert not any(name.startswith("sept_last_round") for name in names)
    assert "sept_tasks_queued" in names, "none are known to wait"


def test_every_number_of_the_last_round_is_there_and_no_other_kind_of_value() -> None:
    last = metrics(7, loss=0.125)
    found = samples_of(status_of(last_round=last))
    of_round = {
        key[0].removeprefix("sept_last_round_"): value for key, value in found.items() if "last_round" in key[0]
    }
    numbers = {name: value for name, value in last.model_dump().items() if isinstance(value, int | float)}
    assert of_round == pytest.approx(numbers)
    assert "evaluations" not in of_round
