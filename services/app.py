"""Composes the HTTP app of one run from routers, authentication and limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.api import error_responses
from services.api.auth import AuthMiddleware
from services.api.change_notifier import ChangeNotifier
from services.api.control import control_router, export_router
from services.api.events import events_router
from services.api.limits import BodyLimit
from services.api.metrics import metrics_router
from services.api.status import StatusReader, status_router
from services.api.weight_memory import SmallFiles, WeightMemory
from services.api.weights import weights_router
from services.dashboard import queue_history
from services.dashboard.assets import assets_router
from services.dashboard.history import history_router, live_router
from services.dashboard.live import Live
from services.dashboard.login import login_router
from services.dashboard.timeseries import TimeSeries
from services.errors import SeptError, UnavailableError
from services.run_folder import RunFolder
from services.streams.connection import Keys
from services.streams.control import AsyncControl
from services.streams.events import AsyncEventLog
from services.streams.heartbeats import LOST_AFTER_S
from services.weights.reader import WeightReader

FOLLOW_S = 2.0
RETRY_S = 1.0
"""Pause before the events are followed again after Redis failed."""

MAX_BODY_BYTES = 1 << 16
"""Longest request body: the largest that a route takes has a few hundred bytes."""

log = structlog.get_logger()


class Health(BaseModel):
    """Answer of /healthz and /readyz."""

    status: str = "ok"


def create_app(
    *,
    folder: RunFolder,
    store: WeightReader,
    redis: Redis,
    keys: Keys,
    token: str | None,
    lost_after_s: float = LOST_AFTER_S,
    queue_every_s: float = queue_history.EVERY_S,
) -> FastAPI:
    """The app of one run. With `token` None the caller must bind it to loopback.

    `queue_every_s`: how often the state of the queues is recorded.

    A server closes `app.state.notifier` before it drains, which ends waiting requests.
    """
    notifier = ChangeNotifier()
    events = AsyncEventLog(redis, keys)
    reader = StatusReader(folder, store, redis, keys, lost_after_s=lost_after_s)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        recording = queue_history.record(folder.queue_history, reader.read, every_s=queue_every_s)
        background = [asyncio.create_task(work) for work in (_follow(events, notifier), recording)]
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
    app.include_router(_health_router(redis, store))
    memory = WeightMemory(store)
    app.include_router(weights_router(memory, store, notifier))
    app.include_router(status_router(reader))
    app.include_router(events_router(events, notifier))
    app.include_router(metrics_router(reader))
    app.include_router(control_router(reader, redis, keys, events))
    app.include_router(export_router(folder, store, events))
    rounds = TimeSeries(folder.metrics)
    app.include_router(history_router(folder, store, rounds))
    app.include_router(live_router(Live(reader, AsyncControl(redis, keys), rounds, notifier)))
    app.include_router(assets_router(with_login=token is not None))
    app.include_router(login_router(token))
    error_responses.install(app)
    app.add_middleware(SmallFiles, memory=memory)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(AuthMiddleware, token=token)
    return app


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


def _health_router(redis: Redis, store: WeightReader) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> Health:
        """The process answers."""
        return Health()

    @router.get("/readyz", responses=error_responses.may_answer(503))
    async def readyz() -> Health:
        """Redis answers and the weight folder exists."""
        await redis.ping()
        if not await asyncio.to_thread(store.folder.is_dir):
            raise UnavailableError(f"the weight folder {store.folder} is not there", hint="check run.dir")
        return Health()

    return router


def _operation_id(route: APIRoute) -> str:
    return route.name
