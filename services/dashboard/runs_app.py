"""The HTTP app of `sept page`: a list of runs, and the page of each of them, all from their folders.

It only reads. What a request names is looked up among the runs that were found: no path is ever made of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from services.api import error_responses
from services.api.auth import AuthMiddleware
from services.api.change_notifier import ChangeNotifier
from services.api.error_responses import may_answer
from services.api.limits import BodyLimit, Compressed, SafeHeaders
from services.api.tokens import WEIGHTS
from services.dashboard.assets import document_router, files_router
from services.dashboard.history import history_router, live_router
from services.dashboard.live import Live, RecordedRun
from services.dashboard.run_list import FoundRun, RunList, RunSummary
from services.run_folder import RunFolder

LiveUrl = Callable[[RunFolder], str]
"""Where the page of a run that is active is; empty when that is not known."""


def create_runs_app(runs: RunList, live_url: LiveUrl) -> FastAPI:
    """The app over the found runs, for loopback: it has no tokens.

    A server closes `app.state.notifier` before it drains, which ends the streams.
    """
    notifier = ChangeNotifier()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        notifier.close()

    app = FastAPI(title="SePT runs", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.notifier = notifier
    app.include_router(document_router("runs.html"))
    app.include_router(files_router())
    app.include_router(runs_router(runs))
    app.mount("/runs/{key}", RunPages(runs, live_url, notifier))
    error_responses.install(app)
    app.add_middleware(Compressed, plain=WEIGHTS)
    app.add_middleware(BodyLimit, longest=lambda _method, _path: 0)
    app.add_middleware(AuthMiddleware, tokens=None)
    app.add_middleware(SafeHeaders, private=False)
    return app


def runs_router(runs: RunList) -> APIRouter:
    """GET routes over all runs."""
    router = APIRouter(tags=["runs"])

    @router.get("/v1/runs", responses=may_answer(503))
    async def read_runs() -> list[RunSummary]:
        """Every run that was found, the one that changed last first."""
        return await asyncio.to_thread(runs.summaries)

    @router.get("/v1/reports", responses=may_answer(503))
    async def read_reports() -> list[dict[str, Any]]:
        """The reports of the studies that were found, as they wrote them."""
        return await asyncio.to_thread(runs.reports)

    return router


class RunPages:
    """ASGI app below /runs/{key}: each run has the page and the history routes that an active run has."""

    def __init__(self, runs: RunList, live_url: LiveUrl, notifier: ChangeNotifier) -> None:
        self._runs = runs
        self._live_url = live_url
        self._notifier = notifier
        self._pages: dict[str, tuple[FoundRun, FastAPI]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = scope["path_params"]["key"]
        run = await asyncio.to_thread(self._runs.find, key)
        if run is None:
            self._pages.pop(key, None)
            raise HTTPException(404, f"there is no run {key[:80]!r} below the folders of this page")
        if key not in self._pages or self._pages[key][0] is not run:
            self._pages[key] = (run, self._page(run))
        await self._pages[key][1](scope, receive, send)

    def _page(self, run: FoundRun) -> FastAPI:
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
        app.include_router(document_router("index.html", marked="data-recorded"))
        app.include_router(history_router(run.folder, run.store, run.rounds))
        recorded = RecordedRun(run.folder, run.store, run.rounds, lambda: self._live_url(run.folder))
        app.include_router(live_router(Live(recorded, self._notifier)))
        error_responses.install(app)
        return app
