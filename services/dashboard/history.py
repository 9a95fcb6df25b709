"""Routes for what a run has done so far: rounds, queues, rollouts, versions, settings, warnings."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Query
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from services.api.error_responses import may_answer
from services.contracts import Digest, FileEntry, WeightManifest
from services.dashboard.live import Live
from services.dashboard.log_warnings import LogWarning, last_warnings
from services.dashboard.rollout_search import Order, RolloutFilter, RolloutSearch, SearchPosition, SearchResult
from services.dashboard.timeseries import TimeSeries, Window
from services.errors import VersionNotFoundError
from services.run_folder import RunFolder
from services.weights.reader import WeightReader

MAX_BUCKETS = 2000
MAX_FOUND = 200
MAX_VERSIONS = 200
MAX_WARNINGS = 200

IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", max_length=256, description="ETag of what is held")]
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The caller holds it"}}


@dataclass(frozen=True, slots=True)
class WindowQuery:
    """Parameters of the routes that send a window of a file."""

    low: Annotated[
        float | None, Query(alias="from", allow_inf_nan=False, description="first round, or Unix seconds")
    ] = None
    high: Annotated[float | None, Query(alias="to", allow_inf_nan=False, description="last one")] = None
    buckets: Annotated[int, Query(ge=3, le=MAX_BUCKETS, description="lines are joined into at most so many")] = 400
    mark: Annotated[str, Query(max_length=100, description="`mark` of the window that is held")] = ""
    have: Annotated[int, Query(ge=0, description="so many of its complete buckets are held")] = 0


Asked = Annotated[WindowQuery, Depends()]


class RolloutQuery(RolloutFilter):
    """Parameters of GET /v1/rollouts."""

    round: int | None = Field(default=None, ge=0)
    """Start here and go back; unset: the newest."""
    line: int = Field(default=0, ge=0)
    """And at this line of it."""
    limit: int = Field(default=50, ge=1, le=MAX_FOUND)
    order: Order = "newest"


class VersionSummary(BaseModel):
    """A published version without its tensors."""

    weight_version: int
    parent_version: int | None
    digest: Digest
    created_at: float
    """Unix seconds."""
    tensors: int
    full_bytes: int
    files: tuple[FileEntry, ...]
    checkpointed: bool
    """Whether the learner can go back to it."""

    @classmethod
    def of(cls, manifest: WeightManifest, *, checkpointed: bool) -> VersionSummary:
        """What fits a row."""
        return cls(
            weight_version=manifest.weight_version,
            parent_version=manifest.parent_version,
            digest=manifest.digest,
            created_at=manifest.created_at,
            tensors=len(manifest.tensors),
            full_bytes=manifest.full_bytes,
            files=manifest.files,
            checkpointed=checkpointed,
        )


def history_router(folder: RunFolder, store: WeightReader, rounds: TimeSeries) -> APIRouter:
    """GET routes over the run's folder."""
    router = APIRouter(tags=["history"])
    queue = TimeSeries(folder.queue_history)
    rollouts = RolloutSearch(folder)
    one_search = asyncio.Semaphore(1)

    @router.get("/v1/rounds", response_model=Window, responses={**NOT_MODIFIED, **may_answer(422, 503)})
    async def read_rounds(asked: Asked, held: IfNoneMatch = None) -> Response:
        """Every number of metrics.jsonl by round; nothing when the caller holds all there is."""
        return await asyncio.to_thread(_window, rounds, "round", asked, held)

    @router.get("/v1/queue", response_model=Window, responses={**NOT_MODIFIED, **may_answer(422, 503)})
    async def read_queue(asked: Asked, held: IfNoneMatch = None) -> Response:
        """How full the queues were and how many generators lived, by time; nothing when the caller holds it."""
        return await asyncio.to_thread(_window, queue, "time", asked, held)

    @router.get("/v1/rollouts", responses=may_answer(422, 503))
    async def find_rollouts(
        wanted: Annotated[RolloutQuery, Query()],
    ) -> SearchResult:
        """Recorded rollouts, the newest round first unless another order is asked for."""
        start = None if wanted.round is None else SearchPosition(round=wanted.round, line=wanted.line)
        chosen = RolloutFilter(**wanted.model_dump(include=set(RolloutFilter.model_fields)))
        async with one_search:
            return await asyncio.to_thread(rollouts.search, chosen, start=start, limit=wanted.limit, order=wanted.order)

    @router.get("/v1/staleness", responses=may_answer(503))
    async def read_staleness() -> dict[int, int]:
        """Rollouts of the newest recorded round by staleness."""
        return await asyncio.to_thread(rollouts.staleness)

    @router.get("/v1/versions", responses=may_answer(409, 422, 503))
    async def read_versions(limit: Annotated[int, Query(ge=1, le=MAX_VERSIONS)] = 50) -> list[VersionSummary]:
        """The newest versions in the store, newest first."""
        return await asyncio.to_thread(_versions, folder, store, limit)

    @router.get(
        "/v1/config",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **may_answer(404, 503)},
    )
    async def read_config() -> PlainTextResponse:
        """The settings as resolved, in TOML, without secrets."""
        try:
            return PlainTextResponse(await asyncio.to_thread(folder.config.read_text))
        except FileNotFoundError:
            raise HTTPException(404, "this run's folder has no config.toml") from None

    @router.get("/v1/warnings", responses=may_answer(422, 503))
    async def read_warnings(limit: Annotated[int, Query(ge=1, le=MAX_WARNINGS)] = 50) -> list[LogWarning]:
        """The last warnings and errors in the logs of a local run, newest first."""
        return await asyncio.to_thread(last_warnings, folder, limit)

    return router


def _window(series: TimeSeries, key: str, asked: WindowQuery, held: str | None) -> Response:
    """The window, or 304 while the file is as it was: a browser asks every few seconds, and keeps the last answer."""
    tag = f'W/"{series.tag()}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if held == tag:
        return Response(status_code=304, headers=headers)
    window = series.window(key, **asdict(asked))
    return Response(window.model_dump_json(), headers=headers, media_type="application/json")


def _versions(folder: RunFolder, store: WeightReader, limit: int) -> list[VersionSummary]:
    checkpointed = set(folder.checkpointed())
    found = []
    for version in reversed(store.versions()[-limit:]):
        try:
            found.append(VersionSummary.of(store.manifest(version), checkpointed=version in checkpointed))
        except VersionNotFoundError:
            continue  # retired since it was listed
    return found


def live_router(live: Live) -> APIRouter:
    """GET /v1/live."""
    router = APIRouter(tags=["status"])

    @router.get(
        "/v1/live",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "A frame a second"},
            **may_answer(),
        },
    )
    async def follow() -> Response:
        """The status, the requests and the bottleneck, about once a second, as server-sent events."""
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(live.frames(), headers=headers, media_type="text/event-stream")

    return router
