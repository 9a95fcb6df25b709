"""A task is one trace, exported once it is trained; a collector that fails does no harm."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from services.contracts import Rollout, VersionSpan
from tests.support.tiny_models import rollout

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `traces` is not installed")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from learner.monitoring.traces import FLUSH_S, Traces

STAGES = ["queued", "generating", "waiting_for_training", "training"]
COMPLETED_AT = 1_800_000_000.0
"""Unix seconds; the learner's clock, which the test does not set, is behind it."""


def sampled(round_: int, index: int, sample: int = 0) -> Rollout:
    """Queued for 2 s, generated in 3 s, by the two versions before its round."""
    spans = (
        VersionSpan(weight_version=round_ - 1, start=0, end=1),
        VersionSpan(weight_version=round_, start=1, end=4),
    )
    times = {"round": round_, "queued_s": 2.0, "generate_s": 3.0, "spans": spans}
    return rollout(index, [1, 2], [3, 4, 5, 6], sample).model_copy(update=times)


def exported_spans(rollouts: Sequence[Rollout], *, round_: int, completed_at: float) -> list[ReadableSpan]:
    """The spans of one round, in the order of their starts, of each trace the root first."""
    exporter = InMemorySpanExporter()
    traces = Traces("run-7", exporter)
    for one in rollouts:
        traces.rollout_taken(one, completed_at)
    traces.round_trained(round_)
    traces.close()
    return sorted(exporter.get_finished_spans(), key=lambda span: (span.start_time, span.parent is not None))


def ids(spans: Sequence[ReadableSpan]) -> set[tuple[int, int]]:
    return {(span.context.trace_id, span.context.span_id) for span in spans if span.context is not None}


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def test_a_task_is_one_trace_whose_stages_follow_each_other_without_a_gap() -> None:
    began = time.time()
    root, *stages = exported_spans([sampled(5, 1, sample) for sample in range(2)], round_=5, completed_at=began - 10)
    assert root.name == "task" and root.parent is None
    assert [span.name for span in stages] == STAGES
    assert all(span.parent == root.context for span in stages)
    assert root.start_time == ns(began - 15)
    assert [span.end_time for span in stages[:2]] == [ns(began - 13), ns(began - 10)]
    assert [span.start_time for span in stages] == [root.start_time, *(span.end_time for span in stages[:-1])]
    assert stages[-1].end_time == root.end_time
    assert stages[-1].start_time is not None and root.end_time is not None
    assert ns(began) <= stages[-1].start_time <= root.end_time <= ns(time.time())


def test_spans_say_who_sampled_with_what_and_which_round_trained_it() -> None:
    root, _, generating, _, training = exported_spans(
        [sampled(5, 1, s) for s in range(2)], round_=5, completed_at=time.time()
    )
    assert root.resource.attributes["service.name"] == "sept"
    assert root.resource.attributes["sept.run_id"] == "run-7"
    assert root.attributes == {"sept.task_id": "r000000-00001", "sept.round": 5, "sept.position": 1}
    assert generating.attributes == {
        "sept.generator_id": "g",
        "sept.temperature": 1.0,
        "sept.samples": 2,
        "sept.prompt_tokens": 2,
        "sept.response_tokens": 8,
        "sept.weight_versions": (4, 5),
        "sept.staleness": 1,
    }
    assert training.attributes == {"sept.round": 5, "sept.weight_version": 6}


def test_every_task_has_a_trace_of_its_own() -> None:
    spans = exported_spans([sampled(5, index) for index in range(300)], round_=5, completed_at=time.time())
    assert len(spans) == len(ids(spans)) == 5 * 300
    assert len({trace_id for trace_id, _ in ids(spans)}) == 300


def test_an_answer_of_a_fixed_data_set_that_a_round_trains_twice_has_two_traces() -> None:
    repeats = [sampled(5, 1).model_copy(update={"position": index}) for index in (1, 7)]
    spans = exported_spans(repeats, round_=5, completed_at=COMPLETED_AT)
    assert len(ids(spans)) == 10
    generating = [span.attributes for span in spans if span.name == "generating"]
    assert [attributes and attributes["sept.samples"] for attributes in generating] == [1, 1]


def test_rollouts_trained_again_have_the_same_trace_and_new_ones_another() -> None:
    """Same: a learner that resumes. Others: a run that was rolled back, and the next epoch of a fixed data set."""
    first = exported_spans([sampled(5, 1)], round_=5, completed_at=COMPLETED_AT)
    assert ids(exported_spans([sampled(5, 1)], round_=5, completed_at=COMPLETED_AT)) == ids(first)
    for round_, completed_at in ((5, COMPLETED_AT + 60), (8, COMPLETED_AT)):
        assert not ids(exported_spans([sampled(5, 1)], round_=round_, completed_at=completed_at)) & ids(first)


def test_clocks_that_disagree_make_no_span_end_before_it_began() -> None:
    spans = exported_spans([sampled(5, 1)], round_=5, completed_at=time.time() + 3600)
    assert len(spans) == 5
    assert all(span.start_time <= span.end_time for span in spans if span.start_time and span.end_time)


def test_impossible_times_of_a_generator_are_no_error() -> None:
    impossible = sampled(5, 1).model_copy(update={"queued_s": 1e300, "generate_s": 1e300})
    root, *_ = exported_spans([impossible], round_=5, completed_at=time.time())
    assert root.start_time == 0


@contextmanager
def hanging() -> Iterator[SpanExporter]:
    """A collector that accepts the connection and never answers, until the block ends."""
    over = threading.Event()

    class Hanging(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            over.wait()
            return SpanExportResult.FAILURE

    yield Hanging()
    over.set()


def test_a_collector_that_hangs_does_not_delay_training_and_delays_the_end_only_shortly() -> None:
    with hanging() as exporter:
        traces = Traces("run-7", exporter)
        for index in range(2000):
            traces.rollout_taken(sampled(5, index), time.time())
        started = time.monotonic()
        traces.round_trained(5)
        assert time.monotonic() - started < FLUSH_S
        started = time.monotonic()
        traces.close()
        assert FLUSH_S <= time.monotonic() - started < 30, "the exporter would hang for ever"
