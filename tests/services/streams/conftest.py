"""Clients and a run of its own for every test of the streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import redis
import redis.asyncio

from services.streams.connection import Keys, connect, connect_async


@pytest.fixture
def keys() -> Keys:
    return Keys("test-run")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    client = connect(redis_url)
    yield client
    client.close()


@pytest.fixture
async def async_client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = await connect_async(redis_url)
    yield client
    await client.aclose()
