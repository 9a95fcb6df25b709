"""Routes by which people request something of the run. They record the request and an audit event; the parts act on it.

Only an export is done here, as it needs no other part. No path ever comes from a caller.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import structlog
from fastapi import APIRouter, BackgroundTasks, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from redis.asyncio import Redis

from services.api.error_responses import may_answer
from services.api.status import FINAL_STATES, StatusReader
from services.errors import SeptError, VersionNotFoundError
from services.run_folder import RunFolder
from services.streams.connection import Keys
from services.streams.control import MAX_GENERATORS, AsyncControl, ControlState
from services.streams.events import AsyncEventLog
from services.weights.export import export_version
from services.weights.reader import MAX_VERSION, WeightReader

SOURCE = "services"

log = structlog.get_logger()


class GeneratorsTarget(BaseModel):
    """Body of POST /v1/control/generators."""

    model_config = ConfigDict(extra="forbid", strict=True)

    generators_target: Annotated[int, Field(ge=0, le=MAX_GENERATORS)]


class Version(BaseModel):
    """Body of the routes that take a version."""

    model_config = ConfigDict(extra="forbid", strict=True)

    weight_version: Annotated[int, Field(ge=0, le=MAX_VERSION)]


class Export(BaseModel):
    """Answer of POST /v1/control/export."""

    folder: str
    """Below the run's folder; it appears there when it is whole."""


class ControlRequests(BaseModel):
    """Everything that is requested of the run, this request included."""

    generators_target: int | None
    paused: bool
    stop_after_round: bool
    checkpoint: bool
    rollback_to: int | None

    @classmethod
    def of(cls, state: ControlState) -> ControlRequests:
        """As they stand in Redis."""
        return cls(
            generators_target=state.generators_target,
            paused=state.paused,
            stop_after_round=state.stop_after_round,
            checkpoint=state.checkpoint,
            rollback_to=state.rollback_to,
        )


def control_router(reader: StatusReader, redis: Redis, keys: Keys, events: AsyncEventLog) -> APIRouter:
    """The /v1/control routes that record a request."""
    router = APIRouter(prefix="/v1/control", tags=["control"])
    control = AsyncControl(redis, keys)

    async def audited(request: Request, action: str, **fields: JsonValue) -> ControlRequests:
        await _audit(events, request, action, **fields)
        return ControlRequests.of(await control.state())

    @router.post("/pause", responses=may_answer(503))
    async def pause(request: Request) -> ControlRequests:
        """No new task starts; what runs is finished."""
        await control.set_paused(True)
        return await audited(request, "pause")

    @router.post("/resume", responses=may_answer(503))
    async def resume(request: Request) -> ControlRequests:
        """Withdraw pause and stop."""
        await control.set_paused(False)
        await control.set_stop_after_round(False)
        return await audited(request, "resume")

    @router.post("/stop", responses=may_answer(503))
    async def stop(request: Request) -> ControlRequests:
        """End the run, resumable, when the current round is durable."""
        await control.set_stop_after_round(True)
        return await audited(request, "stop")

    @router.post("/generators", responses=may_answer(400, 413, 422, 503))
    async def generators(request: Request, body: GeneratorsTarget) -> ControlRequests:
        """How many generators there should be."""
        await control.set_generators_target(body.generators_target)
        return await audited(request, "generators", generators_target=body.generators_target)

    @router.post("/checkpoint", responses=may_answer(409, 422, 503))
    async def checkpoint(request: Request) -> ControlRequests:
        """The learner writes a checkpoint when its round is done."""
        await _expect_learner(reader)
        await control.request_checkpoint()
        return await audited(request, "checkpoint")

    @router.post("/rollback", responses=may_answer(400, 404, 409, 413, 422, 503))
    async def rollback(request: Request, body: Version) -> ControlRequests:
        """The learner goes back to its checkpoint of a version when its round is done; what came later is lost."""
        held = await asyncio.to_thread(reader.folder.checkpointed)
        if body.weight_version not in held:
            raise VersionNotFoundError(
                f"there is no checkpoint of version {body.weight_version}",
                hint=f"there are: {', '.join(map(str, held)) or 'none'}",
            )
        await _expect_learner(reader)
        await control.request_rollback(body.weight_version)
        return await audited(request, "rollback", weight_version=body.weight_version)

    return router


def export_router(folder: RunFolder, store: WeightReader, events: AsyncEventLog) -> APIRouter:
    """POST /v1/control/export."""
    router = APIRouter(prefix="/v1/control", tags=["control"])
    one_export = asyncio.Lock()

    async def write(version: int) -> None:
        async with one_export:
            try:
                await asyncio.to_thread(export_version, folder, folder.export_of(version), version)
            except SeptError as error:
                log.warning("not_exported", weight_version=version, reason=error.message)
                await events.append(
                    SOURCE, "control", action="not_exported", weight_version=version, reason=error.message
                )
            else:
                await events.append(SOURCE, "control", action="exported", weight_version=version)

    @router.post("/export", status_code=202, responses=may_answer(400, 404, 409, 413, 422, 503))
    async def export(request: Request, body: Version, background: BackgroundTasks) -> Export:
        """Write a version as a Hugging Face model folder into the run's exports/, in the background."""
        await asyncio.to_thread(store.manifest, body.weight_version)
        out = folder.export_of(body.weight_version)
        if out.exists():
            raise HTTPException(409, f"{out.name} is in the run's exports/ already")
        if one_export.locked():
            raise HTTPException(409, "another export is under way")
        await _audit(events, request, "export", weight_version=body.weight_version)
        background.add_task(write, body.weight_version)
        return Export(folder=str(out.relative_to(folder.path)))

    return router


async def _audit(events: AsyncEventLog, request: Request, action: str, **fields: JsonValue) -> None:
    client = request.client.host if request.client else "unknown"
    await events.append(SOURCE, "control", action=action, client=client, **fields)


async def _expect_learner(reader: StatusReader) -> None:
    """Refuse a request that nobody would read: it would surprise whoever starts the run again."""
    learner = (await reader.read()).learner
    if learner is not None and learner.state in FINAL_STATES:
        raise HTTPException(409, f"the learner has ended: {learner.state}")
