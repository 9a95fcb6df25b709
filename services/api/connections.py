"""What a connection may cost before a request is known: bytes and seconds for its head, requests in advance, numbers.

head        MAX_HEAD_BYTES, else 431; parsed as it comes, in small slices
request     whole within REQUEST_DEADLINE_S of its connection or of its first byte, else the connection ends
answer      a client that takes nothing for ANSWER_DEADLINE_S is disconnected
body        one that nobody reads ends the connection with the answer
number      beyond the limit the connection that has waited longest without a request makes room for the new one
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
from typing import Any, ClassVar

import structlog

from services.sendfile import SendfileProtocol

MAX_HEAD_BYTES = 16 << 10
REQUEST_DEADLINE_S = 10.0
JITTER = 0.3
"""A connection's deadline is up to so much earlier or later."""
ANSWER_DEADLINE_S = 60.0
LINGER_S = 1.0
LINGER_BYTES = 1 << 20
"""After a refusal so much more is taken and dropped: a connection that ends with bytes unread loses its answer."""
MAX_PIPELINED = 16
"""Requests that may wait for the answer to an earlier one of their connection."""
SLICE_BYTES = 4 << 10
"""Between two slices the limits are looked at."""
FILES_FOR_OTHERS = 256
"""Open files of the process that are not connections."""

log = structlog.get_logger()


def allow_connections() -> int:
    """Let this process have as many open files as the system allows it; returns how many connections may use."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return max(FILES_FOR_OTHERS, most - FILES_FOR_OTHERS)


class GuardedProtocol(SendfileProtocol):
    """HTTP/1.1 under the limits above."""

    max_connections: ClassVar[int] = 1 << 16
    """`services.server` sets what the system allows."""
    request_deadline_s: ClassVar[float] = REQUEST_DEADLINE_S
    answer_deadline_s: ClassVar[float] = ANSWER_DEADLINE_S
    _waiting: ClassVar[dict[GuardedProtocol, None]] = {}
    """Connections without a whole request, the one that has waited longest first."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes = 0
        self._in_head = True
        self._to_drop: int | None = None
        """After a refusal: how many bytes are dropped before the connection ends."""
        self._deadline: asyncio.TimerHandle | None = None
        self._answer_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > self.max_connections:
            crowded_out = next(iter(self._waiting))
            log.warning("connection_crowded_out", connections=len(self.connections), limit=self.max_connections)
            crowded_out.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_is_whole()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._to_drop is not None:
            self._to_drop -= len(data)
            if self._to_drop < 0:
                self.transport.abort()
            return
        for start in range(0, len(data), SLICE_BYTES):
            part = data[start : start + SLICE_BYTES]
            super().data_received(part)
            if self.transport.is_closing() or self._to_drop is not None or self.transport.get_protocol() is not self:
                return
            self._head_bytes += len(part) if self._in_head else 0
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head()
                return
            if len(self.pipeline) > MAX_PIPELINED:
                self.transport.abort()
                return

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:
            self._await_request()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        self._request_is_whole()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._request_is_whole()
        super().handle_websocket_upgrade()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and not self.transport.is_closing():
            self._end_after_answer()  # the rest of a body that was refused, or that no route reads

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._answer_deadline is None:
            self._answer_deadline = self.loop.call_later(self.answer_deadline_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._answer_deadline is not None:
            self._answer_deadline.cancel()
            self._answer_deadline = None
        if self.flow is not None:
            super().resume_writing()

    def _await_request(self) -> None:
        self._waiting[self] = None
        # Thousands that came together do not end together: that would be a second of work at once.
        seconds = self.request_deadline_s * random.uniform(1 - JITTER, 1 + JITTER)
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _request_is_whole(self) -> None:
        self._waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse_head(self) -> None:
        error = f"the head of the request exceeds the limit of {MAX_HEAD_BYTES} bytes"
        body = json.dumps({"error": error, "hint": "send shorter headers and a shorter address"}).encode()
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._end_after_answer()

    def _end_after_answer(self) -> None:
        self._unset_keepalive_if_required()
        self._request_is_whole()
        self._to_drop = LINGER_BYTES
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._deadline = self.loop.call_later(LINGER_S, self.transport.abort)
