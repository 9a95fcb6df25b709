"""The HTTP app over a run folder of its own, for tests on both sides of the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI
from redis.asyncio import Redis

from services.api.connections import GuardedProtocol
from services.api.tokens import Role
from services.app import create_app
from services.net import LOOPBACK, listen, listener_url
from services.run_folder import RunFolder
from services.server import DrainingServer
from services.streams.connection import Keys, connect_async
from services.weights.client import WeightClient
from services.weights.publisher import WeightPublisher

BASE_URL = "http://127.0.0.1"


@dataclass
class Endpoint:
    """One run's folder, queues and app."""

    folder: RunFolder
    store: WeightPublisher
    """Writes into the folder that the app serves."""
    redis: Redis
    keys: Keys
    app: FastAPI

    def http(self, *, token: str | None = None, base_url: str = BASE_URL) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=base_url, headers=headers)

    def weights(self, *, deadline_s: float = 5.0) -> WeightClient:
        return WeightClient(BASE_URL, deadline_s=deadline_s, transport=httpx.ASGITransport(self.app))


def open_store(
    folder: Path, run_id: str = "run", *, anchor_every: int = 4, keep_versions: int = 100
) -> WeightPublisher:
    """A publisher whose anchors are close together."""
    return WeightPublisher(folder, run_id, anchor_every=anchor_every, keep_versions=keep_versions)


@asynccontextmanager
async def open_endpoint(
    path: Path, redis_url: str, *, token: str | None = None, role_tokens: Mapping[Role, str] | None = None
) -> AsyncIterator[Endpoint]:
    """An app whose lifespan is not running: enough for everything but waking by events."""
    folder = RunFolder(path).create()
    redis = await connect_async(redis_url)
    keys = Keys(folder.run_id)
    store = open_store(folder.weights, keys.run_id)
    app = create_app(folder=folder, store=store, redis=redis, keys=keys, token=token, role_tokens=role_tokens)
    try:
        yield Endpoint(folder, store, redis, keys, app)
    finally:
        await redis.aclose()


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The app behind a real server on a free port; yields its address."""
    with listen(LOOPBACK, 0, setting="services.port") as listener:
        config = uvicorn.Config(app, http=GuardedProtocol, lifespan="on", log_config=None, timeout_graceful_shutdown=5)
        server = DrainingServer(config, app.state.notifier)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener_url(listener)
        finally:
            server.handle_exit(0, None)
            await asyncio.wait_for(running, 60)
