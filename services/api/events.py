"""The run's events as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated

import structlog
from fastapi import APIRouter, Header, HTTPException, Query
from fastapi.responses import StreamingResponse
from redis.exceptions import RedisError

from services.api.change_notifier import ChangeNotifier
from services.api.error_responses import may_answer
from services.contracts import Identifier
from services.errors import SeptError
from services.streams.events import AsyncEventLog, Event, check_event_id

KEEP_ALIVE_S = 15.0
"""A comment is sent after so much silence, so that both sides notice a dead connection."""

MAX_STREAMS = 256
"""Streams at once: each costs a connection, and work for every event."""

MAX_LAST = 500
LOOK_BACK = 2000
"""Events of one kind are searched in so many of the newest events."""

log = structlog.get_logger()


def events_router(events: AsyncEventLog, notifier: ChangeNotifier) -> APIRouter:
    """GET /v1/events. One follower wakes all streams, so a stream holds no Redis connection while it waits."""
    router = APIRouter(tags=["status"])
    streams: set[object] = set()

    @router.get(
        "/v1/events",
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
                "description": "Events as they come",
            },
            **may_answer(422, 503),
        },
    )
    async def stream(
        after: Annotated[str | None, Query(max_length=64, description='event id; "0": all; unset: what comes')] = None,
        last_event_id: Annotated[str | None, Header(max_length=64, description="where the browser was")] = None,
    ) -> StreamingResponse:
        """Everything that happens in the run, one server-sent event each."""
        start = last_event_id or after or await events.last_id()
        check_event_id(start)
        if len(streams) >= MAX_STREAMS:
            raise HTTPException(503, f"{MAX_STREAMS} streams of events are open already")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        frames = _counted(_follow(events, notifier, start), streams)
        return StreamingResponse(frames, headers=headers, media_type="text/event-stream")

    @router.get("/v1/events/last", responses=may_answer(422, 503))
    async def last(
        kind: Annotated[Identifier | None, Query(description="only these, such as control; unset: all")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LAST)] = 50,
    ) -> list[Event]:
        """The newest events, newest first."""
        found = [event for event in await events.tail(LOOK_BACK if kind else limit) if kind in (None, event.kind)]
        return found[: -limit - 1 : -1]

    return router


async def _counted(frames: AsyncIterator[str], streams: set[object]) -> AsyncIterator[str]:
    streams.add(frames)
    try:
        async for frame in frames:
            yield frame
    finally:
        streams.discard(frames)


async def _follow(events: AsyncEventLog, notifier: ChangeNotifier, after: str) -> AsyncIterator[str]:
    while not notifier.closed:
        change = notifier.next_change()
        try:
            batch = await events.read(after, 0)
        except (SeptError, RedisError) as error:
            log.warning("event_stream_ended", reason=str(error))
            return  # the browser reconnects and sends the id of the last event that it got
        for event in batch:
            yield _frame(event)
            after = event.id
        if not batch:
            await notifier.wait(change, KEEP_ALIVE_S)
            yield ": still here\n\n"


def _frame(event: Event) -> str:
    data = {"source": event.source, "kind": event.kind, "time_s": event.time_s, "fields": event.fields}
    return f"id: {event.id}\ndata: {json.dumps(data)}\n\n"
