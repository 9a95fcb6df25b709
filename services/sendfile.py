"""Files from disk to socket by the kernel: the ASGI extension `http.response.pathsend`, which uvicorn itself lacks.

starlette sends a whole file this way wherever the scope offers it, so no byte of a snapshot passes through Python;
ranges of a file are read and written as before. It needs asyncio's own event loop and plain sockets, which
`services.server` uses.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

PATHSEND = "http.response.pathsend"

SLICE_BYTES = 8 << 20
SLICE_DEADLINE_S = 120.0
"""A client that takes longer for a slice (0.07 MB/s) is disconnected: it holds a connection and an open file."""

log = structlog.get_logger()


class SendfileProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, whose scopes offer `http.response.pathsend`."""

    slice_deadline_s = SLICE_DEADLINE_S

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._inner: Any = self.app
        self.app = self._with_pathsend

    async def _with_pathsend(self, scope: Any, receive: Any, send: Any) -> None:
        cycle: RequestResponseCycle = send.__self__  # uvicorn calls the app with this method of the request's own cycle

        async def sending(message: Any) -> None:
            if message["type"] != PATHSEND:
                await send(message)
            elif await self._send_file(cycle, Path(message["path"])):
                await send({"type": "http.response.body"})

        extensions = {**scope.get("extensions", {}), PATHSEND: {}}
        await self._inner({**scope, "extensions": extensions}, receive, sending)

    async def _send_file(self, cycle: RequestResponseCycle, path: Path) -> bool:
        """Send as many of the file's bytes as were announced; False, with the connection closed, when that fails."""
        offset = 0
        with await asyncio.to_thread(path.open, "rb") as file:
            try:
                while cycle.expected_content_length and not self.transport.is_closing():
                    count = min(SLICE_BYTES, cycle.expected_content_length)
                    async with asyncio.timeout(self.slice_deadline_s):
                        sent = await self.loop.sendfile(self.transport, file, offset, count)
                    if not sent:
                        raise ConnectionError("the file is shorter than announced")
                    offset += sent
                    cycle.expected_content_length -= sent
            except (ConnectionError, TimeoutError) as error:
                log.info("file_not_taken", file=path.name, sent_bytes=offset, reason=str(error) or "too slow")
                self.transport.abort()
                cycle.disconnected = True  # uvicorn learns of it later, and would log an incomplete answer
        return not cycle.disconnected
