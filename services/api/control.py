"""Routes that change what people want of the run. They note the wish and an audit line; others make it so."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from redis.asyncio import Redis

from services.api.problems import may_answer
from services.streams.connection import Keys
from services.streams.control import MAX_GENERATORS, AsyncControl, ControlState
from services.streams.events import AsyncEventLog


class GeneratorCount(BaseModel):
    """Body of POST /v1/control/generators."""

    model_config = ConfigDict(extra="forbid", strict=True)

    count: Annotated[int, Field(ge=0, le=MAX_GENERATORS)]


class Wishes(BaseModel):
    """What is wanted of the run, after the request."""

    desired_generators: int | None
    paused: bool
    stop_after_round: bool

    @classmethod
    def of(cls, state: ControlState) -> Wishes:
        """As they stand in Redis."""
        return cls(
            desired_generators=state.desired_generators, paused=state.paused, stop_after_round=state.stop_after_round
        )


def control_router(redis: Redis, keys: Keys, events: AsyncEventLog) -> APIRouter:
    """The /v1/control routes."""
    router = APIRouter(prefix="/v1/control", tags=["control"])
    control = AsyncControl(redis, keys)

    async def audited(request: Request, action: str, **fields: JsonValue) -> Wishes:
        client = request.client.host if request.client else "unknown"
        await events.append("services", "control", action=action, client=client, **fields)
        return Wishes.of(await control.state())

    @router.post("/pause", responses=may_answer(503))
    async def pause(request: Request) -> Wishes:
        """No new task starts; what runs is finished."""
        await control.set_paused(True)
        return await audited(request, "pause")

    @router.post("/resume", responses=may_answer(503))
    async def resume(request: Request) -> Wishes:
        """Take back pause and stop."""
        await control.set_paused(False)
        await control.set_stop_after_round(False)
        return await audited(request, "resume")

    @router.post("/stop", responses=may_answer(503))
    async def stop(request: Request) -> Wishes:
        """End the run, resumable, when the current round is durable."""
        await control.set_stop_after_round(True)
        return await audited(request, "stop")

    @router.post("/generators", responses=may_answer(400, 413, 422, 503))
    async def generators(request: Request, wish: GeneratorCount) -> Wishes:
        """How many generators there should be."""
        await control.set_desired_generators(wish.count)
        return await audited(request, "generators", count=wish.count)

    return router
