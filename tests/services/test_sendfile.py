"""Files reach the socket whole, in turn with other answers, and a client that stops taking them is let go."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from structlog.testing import capture_logs

from services.sendfile import PATHSEND, SendfileProtocol

LARGE = 20 << 20
"""More than a slice, and far more than a socket holds."""
PATIENCE_S = 20.0


class Impatient(SendfileProtocol):
    slice_deadline_s = 0.05


@asynccontextmanager
async def serving(folder: Path, protocol: type[SendfileProtocol] = SendfileProtocol) -> AsyncIterator[int]:
    """A server of that folder's files; /text answers without one. Yields its port."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        assert PATHSEND in scope["extensions"]
        if scope["path"] == "/text":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            await send({"type": "http.response.body", "body": b"text"})
            return
        path = folder / scope["path"].strip("/")
        announced = int(scope["query_string"] or path.stat().st_size)
        headers = [(b"content-length", str(announced).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": PATHSEND, "path": str(path)})

    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await asyncio.wait_for(running, PATIENCE_S)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    data = np.random.default_rng(0).bytes(LARGE)
    (tmp_path / "large").write_bytes(data)
    (tmp_path / "small").write_bytes(data[:1000])
    (tmp_path / "empty").touch()
    return data


async def answer(reader: asyncio.StreamReader) -> bytes:
    """One answer's body."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    return await asyncio.wait_for(reader.readexactly(length), PATIENCE_S)


def asking(*paths: str) -> bytes:
    return b"".join(f"GET /{path} HTTP/1.1\r\nHost: h\r\n\r\n".encode() for path in paths)


@pytest.mark.parametrize(("name", "size"), [("large", LARGE), ("small", 1000), ("empty", 0)])
async def test_a_file_arrives_whole(tmp_path: Path, content: bytes, name: str, size: int) -> None:
    async with serving(tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asking(name))
        assert await answer(reader) == content[:size]
        writer.close()


async def test_answers_on_one_connection_come_in_turn(tmp_path: Path, content: bytes) -> None:
    """Asked for all at once, so that each is waiting while the one before it is sent."""
    async with serving(tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asking("large", "text", "small", "large", "text"))
        for expected in (content, b"text", content[:1000], content, b"text"):
            assert await answer(reader) == expected
        writer.close()


async def test_many_clients_at_once(tmp_path: Path, content: bytes) -> None:
    async def pull(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asking("large"))
        body = await answer(reader)
        writer.close()
        return body

    async with serving(tmp_path) as port:
        assert set(await asyncio.gather(*(pull(port) for _ in range(8)))) == {content}


async def test_a_client_that_leaves_disturbs_nobody(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as port:
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(asking("large"))
            await reader.readexactly(1000)
            writer.transport.abort()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asking("large"))
        assert await answer(reader) == content
        writer.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_client_that_takes_nothing_is_let_go(tmp_path: Path, content: bytes) -> None:
    async with serving(tmp_path, Impatient) as port:
        with capture_logs() as logs:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
            writer.write(asking("large"))
            for _ in range(int(PATIENCE_S * 100)):
                if logs:
                    break
                await asyncio.sleep(0.01)
        assert [(entry["event"], entry["reason"]) for entry in logs] == [("file_not_taken", "too slow")]
        assert len(await asyncio.wait_for(reader.read(), PATIENCE_S)) < LARGE, "it ends where it was given up"
        writer.close()


async def test_a_file_that_became_shorter_ends_the_connection(tmp_path: Path, content: bytes) -> None:
    async with serving(tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asking("small?2000"))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await answer(reader)
        writer.close()
