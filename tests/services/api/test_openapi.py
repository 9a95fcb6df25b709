"""The app keeps its own OpenAPI document, whatever is sent to it; and is closed without the token, all of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from services.api.auth import OPEN_PATHS
from tests.support.endpoint import Endpoint, open_endpoint, served
from tests.support.weight_samples import first_version

TOKEN = "a token of this test"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NEWEST = 40_507
"""A version that nobody holds by chance: whoever asks for a newer one would be made to wait."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> Iterator[str]:
    """A real server with two versions, on a thread of its own."""
    started: Future[str] = Future()
    over = threading.Event()

    async def serve() -> None:
        path = tmp_path_factory.mktemp("openapi") / "run"
        async with open_endpoint(path, redis_server_url, token=TOKEN) as endpoint:
            endpoint.store.publish(0, first_version())
            endpoint.store.publish(NEWEST, first_version())
            async with served(endpoint.app) as address:
                started.set_result(address)
                await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield started.result(30)
    finally:
        over.set()
        thread.join(30)


@pytest.fixture(scope="module")
def document(address: str) -> schemathesis.BaseSchema:
    loaded = schemathesis.openapi.from_url(f"{address}/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"})
    return loaded.exclude(path=["/v1/events", "/v1/live"])  # answers without end


def test_every_answer_is_one_that_the_document_promises(document: schemathesis.BaseSchema) -> None:
    operations = [result.ok() for result in document.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:

        @settings(
            max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def keeps_its_promise(case: schemathesis.Case) -> None:
            case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, checks=CHECKS, timeout=20)

        keeps_its_promise()


@pytest.mark.parametrize("after", ["x", "1-", "-1", "9" * 30, "0-0-0", "\x00"])
def test_events_after_nonsense_are_refused(after: str, address: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = httpx.get(f"{address}/v1/events", params={"after": after}, headers=headers, trust_env=False)
    assert answer.status_code == 422


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer x", f"Basic {TOKEN}", "Bearer \udcff"])
async def test_nothing_but_the_health_check_is_open_without_the_token(
    authorization: str | None, tmp_path: Path, redis_url: str
) -> None:
    """Goes by the app's routes and not by the document, so that none is forgotten."""
    value = (authorization or "").encode(errors="surrogateescape")
    headers = {} if authorization is None else {b"Authorization": value}
    async with open_endpoint(tmp_path / "run", redis_url, token=TOKEN) as endpoint, endpoint.http() as http:
        for method, path in routes(endpoint):
            answer = await http.request(method, path, headers=headers)
            assert answer.status_code == 401 or path in OPEN_PATHS, f"{method} {path}: {answer.status_code}"
    shut_out = [path for path in OPEN_PATHS if path != "/healthz" and not path.startswith(("/login", "/page/"))]
    assert not shut_out, "besides the health check only the way in is open, which tells nothing of the run"


def routes(endpoint: Endpoint) -> list[tuple[str, str]]:
    found = [
        (method, route.path.format_map(dict.fromkeys(route.param_convertors, "0")))
        for route in endpoint.app.routes
        if isinstance(route, APIRoute | Route)
        for method in sorted(route.methods or ())
    ]
    assert ("GET", "/v1/status") in found
    assert ("GET", "/openapi.json") in found
    return found
