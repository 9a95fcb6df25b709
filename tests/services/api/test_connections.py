"""What a connection costs is bounded before anybody knows whose it is."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest

from benchmarks.abuse import measure
from services.api.connections import MAX_HEAD_BYTES, MAX_PIPELINED, GuardedProtocol
from services.net import port_of
from tests.support.endpoint import Endpoint, open_endpoint, served

TOKEN = "the-right-one"
PATIENCE_S = 10.0
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], AbstractAsyncContextManager[Connection]]


@pytest.fixture
async def guarded(tmp_path: Path, redis_url: str) -> AsyncIterator[Endpoint]:
    async with open_endpoint(tmp_path / "run", redis_url, token=TOKEN) as endpoint:
        yield endpoint


@pytest.fixture
async def connect(guarded: Endpoint) -> AsyncIterator[Connect]:
    """Opens a connection to the served app."""
    async with served(guarded.app) as url:

        @contextlib.asynccontextmanager
        async def open_one() -> AsyncIterator[Connection]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
            try:
                yield reader, writer
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

        yield open_one


async def until_end(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the server ends the connection."""
    found = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE_S):
            while part := await reader.read(1 << 16):
                found += part
    return found


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * MAX_HEAD_BYTES,
        b"GET /" + b"x" * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (MAX_HEAD_BYTES // 6 + 1),
        b"\r\n" * MAX_HEAD_BYTES,
    ],
    ids=["header", "address", "headers", "empty lines"],
)
async def test_a_head_that_does_not_end_is_refused(connect: Connect, head: bytes) -> None:
    async with connect() as (reader, writer):
        writer.write(head + bytes(MAX_HEAD_BYTES))
        answers = await until_end(reader)
    assert statuses(answers)[:1] in ([431], [400])


async def test_a_head_of_usual_length_is_read_however_it_is_cut(connect: Connect) -> None:
    head = b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: " + b"x" * (MAX_HEAD_BYTES // 2)
    request = head + f"\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    async with connect() as (reader, writer):
        for start in range(0, len(request), 1000):
            writer.write(request[start : start + 1000])
            await writer.drain()
        assert statuses(await until_end(reader)) == [200]


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTTP/1.1\r\nX: ", b"POST /login HTTP/1.1\r\nContent-Length: 9\r\n\r\nto"]
)
async def test_a_request_that_does_not_come_ends_the_connection(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(GuardedProtocol, "request_deadline_s", 0.1)
    async with connect() as (reader, writer):
        writer.write(sent)
        assert statuses(await until_end(reader)) == []
    assert not GuardedProtocol._waiting


async def test_a_request_that_is_whole_may_wait_for_its_answer(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuardedProtocol, "request_deadline_s", 0.1)
    async with connect() as (reader, writer):
        poll = f"GET /v1/weights/latest?timeout_s=0.5 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        writer.write(f"{poll}Connection: close\r\n\r\n".encode())
        assert statuses(await until_end(reader)) == [204]


async def test_the_connection_that_has_waited_longest_makes_room(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuardedProtocol, "max_connections", 2)
    async with connect() as (oldest, _), connect(), connect() as (reader, writer):
        assert await until_end(oldest) == b""
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert statuses(await until_end(reader)) == [200]


async def test_many_requests_at_once_end_the_connection(connect: Connect) -> None:
    async with connect() as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n" * (10 * MAX_PIPELINED))
        assert len(statuses(await until_end(reader))) < 10 * MAX_PIPELINED


async def test_some_requests_at_once_are_answered_in_order(connect: Connect) -> None:
    async with connect() as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\nGET /v1/status HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert statuses(await until_end(reader)) == [200, 401]


@pytest.mark.parametrize("length", ["Content-Length: 100000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(("request_line", "status"), [("POST /login", 413), ("GET /healthz", 413), ("GET /v1/x", 401)])
async def test_a_long_body_is_refused_unread(connect: Connect, length: str, request_line: str, status: int) -> None:
    async with connect() as (reader, writer):
        writer.write(f"{request_line} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\nf4240\r\n".encode())
        if length.startswith("T") and status == 413:
            writer.write(b"x" * 20_000)
        answers = await until_end(reader)
    # a route that reads no body is answered before a body without a length turns out to be long
    assert statuses(answers)[:1] in ([status], [200] if request_line == "GET /healthz" else [status])


async def test_a_client_that_sends_too_much_still_learns_why(guarded: Endpoint) -> None:
    async with served(guarded.app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as http:
        too_long = await http.post("/login", content=b"x" * 1_000_000)
        assert (too_long.status_code, "exceeds the limit of" in too_long.json()["error"]) == (413, True)
        too_long = await http.get("/healthz", headers={"X-Long": "x" * 100_000})
        assert (too_long.status_code, "head of the request exceeds" in too_long.json()["error"]) == (431, True)
        assert (await http.get("/healthz")).status_code == 200


async def test_abuse_of_every_kind_costs_others_nothing() -> None:
    """The short form of the benchmark; how fast others are answered depends on the machine, that they are does not."""
    found = await asyncio.to_thread(measure, 3.0, 300)
    assert found["health_asked"] > 10
    assert found["health_median_ms"] < 200
    assert found["memory_mb"] < 400
    assert found["log_bytes"] < 100_000
    refused = {answer.rpartition(": HTTP/1.1 ")[2].split(" ")[0] for answer in found["answers"] if "HTTP" in answer}
    assert {"413", "431"} <= refused <= {"413", "431", "400"}
