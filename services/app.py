"""Composes the HTTP app of one run from routers, authentication and limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Annotated

import structlog
from fastapi import APIRouter, FastAPI, Query
from fastapi.routing import APIRoute
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.api import error_responses
from services.api.auth import AuthMiddleware
from services.api.change_notifier import ChangeNotifier
from services.api.control import control_router, export_router
from services.api.events import events_router
from services.api.limits import BodyLimit, Compressed, SafeHeaders
from services.api.metrics import metrics_router
from services.api.status import StatusReader, status_router
from services.api.tokens import READING, WEIGHTS, Role, Tokens
from services.api.weight_memory import SmallFiles, WeightMemory
from services.api.weights import weights_router
from services.dashboard import queue_history
from services.dashboard.assets import document_router, files_router
from services.dashboard.history import history_router, live_router
from services.dashboard.live import ActiveRun, Live
from services.dashboard.login import login_router
from services.dashboard.timeseries import TimeSeries
from services.errors import SeptError, UnavailableError
from services.http_client import HEALTH_PATH
from services.run_folder import RunFolder, RunIdentity
from services.streams.acl import keep_scripts_loaded
from services.streams.connection import Keys, is_cancelled
from services.streams.control import AsyncControl
from services.streams.events import AsyncEventLog, take_over_events_of_generators
from services.streams.heartbeats import LOST_AFTER_S
from services.weights.reader import WeightReader

FOLLOW_S = 2.0
RETRY_S = 1.0
"""Pause before the events are followed again after Redis failed."""

MAX_BODY_BYTES = 8192
"""Longest body of a request that may have one: the largest that a route takes has a few hundred bytes."""

Challenge = Annotated[str | None, Query(pattern="^[0-9a-f]{32,64}$", description="random, for a proof")]

log = structlog.get_logger()


class Health(BaseModel):
    """Answer of /healthz and /readyz."""

    status: str = "ok"
    run_id: str | None = None
    proof: str | None = None
    """That these are the services of that run, for the challenge that was sent."""


def create_app(
    *,
    folder: RunFolder,
    store: WeightReader,
    redis: Redis,
    keys: Keys,
    token: str | None,
    role_tokens: Mapping[Role, str] | None = None,
    lost_after_s: float = LOST_AFTER_S,
    queue_every_s: float = queue_history.EVERY_S,
) -> FastAPI:
    """The app of one run. With `token` None the caller must bind it to loopback.

    `token` is the one for steering, `role_tokens` are those of the other roles; tokens.json of the folder has more.

    `queue_every_s`: how often the state of the queues is recorded.

    A server closes `app.state.notifier` before it drains, which ends waiting requests.
    """
    notifier = ChangeNotifier()
    tokens = Tokens({**(role_tokens or {}), Role.STEER: token}, folder.tokens) if token else None
    events = AsyncEventLog(redis, keys)
    reader = StatusReader(folder, store, redis, keys, lost_after_s=lost_after_s)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        recording = queue_history.record(folder.queue_history, reader.read, every_s=queue_every_s)
        works = (_follow(events, notifier), _take_over(redis, keys), recording, keep_scripts_loaded(redis))
        background = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            notifier.close()
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)

    app = FastAPI(
        title="SePT services",
        description="Weight sync, status and control of one run.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.notifier = notifier
    app.include_router(_health_router(redis, store, folder.run_identity))
    memory = WeightMemory(store)
    app.include_router(weights_router(memory, store, notifier))
    app.include_router(status_router(reader))
    app.include_router(events_router(events, notifier))
    app.include_router(metrics_router(reader))
    app.include_router(control_router(reader, redis, keys, events))
    app.include_router(export_router(folder, store, events))
    rounds = TimeSeries(folder.metrics)
    app.include_router(history_router(folder, store, rounds))
    app.include_router(live_router(Live(ActiveRun(reader, AsyncControl(redis, keys), rounds), notifier)))
    app.include_router(document_router("index.html", marked="" if tokens is None else "data-login"))
    app.include_router(files_router())
    app.include_router(login_router(tokens))
    error_responses.install(app)
    app.add_middleware(SmallFiles, memory=memory)
    app.add_middleware(Compressed, plain=WEIGHTS)
    app.add_middleware(BodyLimit, longest=_longest_body)
    app.add_middleware(AuthMiddleware, tokens=tokens)
    app.add_middleware(SafeHeaders, private=tokens is not None)
    return app


def _longest_body(method: str, _path: str) -> int:
    return 0 if method in READING else MAX_BODY_BYTES


async def _follow(events: AsyncEventLog, notifier: ChangeNotifier) -> None:
    """Wake waiting requests at every event. Without Redis they poll the disk themselves."""
    after: str | None = None
    while not notifier.closed:  # a cancellation alone may be swallowed by a wait that ends with it
        try:
            if after is None:
                after = await events.last_id()
            batch = await events.read(after, FOLLOW_S)
        except (SeptError, RedisError) as error:
            log.warning("events_not_followed", reason=str(error))
            await asyncio.sleep(RETRY_S)
            continue
        if batch:
            after = batch[-1].id
            notifier.notify()


async def _take_over(redis: Redis, keys: Keys) -> None:
    """Move the events of generators into the run's, until cancelled."""
    while not is_cancelled():
        try:
            await take_over_events_of_generators(redis, keys)
        except (SeptError, RedisError) as error:
            log.warning("events_not_taken_over", reason=str(error))
            await asyncio.sleep(RETRY_S)


def _health_router(redis: Redis, store: WeightReader, identity: RunIdentity) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get(HEALTH_PATH, response_model_exclude_none=True)
    async def healthz(challenge: Challenge = None) -> Health:
        """The process answers. To a challenge it proves which run is its own, so that a client may send its token."""
        if challenge is None:
            return Health()
        return Health(run_id=identity.run_id, proof=identity.proof(challenge))

    @router.get("/readyz", response_model_exclude_none=True, responses=error_responses.may_answer(503))
    async def readyz() -> Health:
        """Redis answers and the weight folder exists."""
        await redis.ping()
        if not await asyncio.to_thread(store.folder.is_dir):
            raise UnavailableError(f"the weight folder {store.folder} is not there", hint="check run.dir")
        return Health()

    return router


def _operation_id(route: APIRoute) -> str:
    return route.name
