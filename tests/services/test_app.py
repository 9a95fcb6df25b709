"""The app as a whole: health, events, limits, and no 5xx for what a caller sends."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.app import MAX_BODY_BYTES, create_app
from services.streams.connection import Keys
from tests.support.endpoint import BASE_URL, Endpoint


async def test_health_and_readiness(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).status_code == 200
    endpoint.folder.weights.rmdir()
    assert (await http.get("/readyz")).status_code == 503


async def test_without_redis_health_answers_and_the_rest_says_why(endpoint: Endpoint) -> None:
    async with Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0)) as absent:
        app = create_app(folder=endpoint.folder, store=endpoint.store, redis=absent, keys=Keys("run"), token=None)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE_URL) as http:
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/v1/weights/latest", params={"timeout_s": 0})).status_code == 204
            for path in ("/readyz", "/v1/status", "/metrics", "/v1/events"):
                answer = await http.get(path)
                assert (answer.status_code, answer.json().keys()) == (503, {"error", "hint"})
            assert (await http.post("/v1/control/pause")).status_code == 503


async def in_pieces(size: int) -> AsyncIterator[bytes]:
    """A body of `size` bytes without a length in front, as a chunked request sends it."""
    for start in range(0, size, 1000):
        yield bytes(min(1000, size - start))


async def test_a_body_beyond_the_limit_is_refused_also_in_pieces(http: httpx.AsyncClient) -> None:
    for size, status in ((MAX_BODY_BYTES, 422), (MAX_BODY_BYTES + 1, 413)):
        for content in (bytes(size), in_pieces(size)):
            answer = await http.post("/v1/control/generators", content=content)
            assert answer.status_code == status


@pytest.mark.parametrize("path", ["/v1/nothing", "/..%2f..%2fetc/passwd", "/v1/weights/0/files/a/b"])
async def test_an_unknown_route_is_404_in_the_same_form(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert (answer.status_code, answer.json().keys()) == (404, {"error", "hint"})
