"""One run's app without a token, as `sept run` has it on one machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.endpoint import Endpoint, open_endpoint


@pytest.fixture
async def endpoint(tmp_path: Path, redis_url: str) -> AsyncIterator[Endpoint]:
    async with open_endpoint(tmp_path / "run", redis_url) as endpoint:
        yield endpoint


@pytest.fixture
async def http(endpoint: Endpoint) -> AsyncIterator[httpx.AsyncClient]:
    async with endpoint.http() as http:
        yield http
