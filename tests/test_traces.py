"""A whole run of real processes with a collector of traces: what it receives is what the run recorded."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support import scripted_run
from tests.support.scripted_run import finish, rollouts_of, sept

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `traces` is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

ROUNDS, PROMPTS = 3, 8
Received = list[tuple[str, ExportTraceServiceRequest]]
"""Path and body of every request."""


@pytest.fixture
def collector() -> Iterator[tuple[str, Received]]:
    """Address of an OTLP/HTTP receiver on this machine, and what it received."""
    received: Received = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """The run's own account of its rollouts, by task id."""
    return {record["rollout_id"].removesuffix(".0"): record for record in rollouts_of(folder)}


def by_trace(received: Received) -> list[dict[str, Span]]:
    """The spans of every trace by name."""
    traces: dict[bytes, dict[str, Span]] = defaultdict(dict)
    for _, request in received:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    assert span.name not in traces[span.trace_id]
                    traces[span.trace_id][span.name] = span
    return list(traces.values())


def attribute(span: Span, key: str) -> Any:
    (value,) = (entry.value for entry in span.attributes if entry.key == key)
    return getattr(value, value.WhichOneof("value"))


def seconds(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


async def test_every_task_of_a_run_is_one_trace_that_says_what_the_run_recorded(
    tmp_path: Path, collector: tuple[str, Received]
) -> None:
    endpoint, received = collector
    config = scripted_run.write(tmp_path, rounds=ROUNDS, prompts_per_round=PROMPTS)
    to_collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    assert await finish(await sept("run", config, "--set", "services.port=0", environ=to_collector)) == 0
    assert {path for path, _ in received} == {"/v1/traces"}
    records, traces = recorded(tmp_path / "run"), by_trace(received)
    assert sorted(attribute(trace["task"], "sept.task_id") for trace in traces) == sorted(records)
    assert len(records) == ROUNDS * PROMPTS
    for trace in traces:
        record = records[attribute(trace["task"], "sept.task_id")]
        root, generating = trace.pop("task"), trace["generating"]
        assert not root.parent_span_id and {span.parent_span_id for span in trace.values()} == {root.span_id}
        assert sum(map(seconds, trace.values())) == pytest.approx(seconds(root))
        assert seconds(trace["queued"]) == pytest.approx(record["queued_s"], abs=1e-5)
        assert seconds(generating) == pytest.approx(record["generate_s"], abs=1e-5)
        assert seconds(trace["training"]) > 0
        assert attribute(generating, "sept.generator_id") == record["generator_id"]
        assert attribute(generating, "sept.response_tokens") == record["response_tokens"]
        assert attribute(generating, "sept.staleness") == record["staleness"]
        assert attribute(trace["training"], "sept.round") == record["round"]
