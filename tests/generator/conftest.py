"""The world of tests that run a whole generator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.streams.connection import connect
from tests.support.endpoint import open_endpoint
from tests.support.generator_world import World


@pytest.fixture
async def world(tmp_path: Path, redis_url: str) -> AsyncIterator[World]:
    async with open_endpoint(tmp_path / "run", redis_url) as endpoint:
        with connect(redis_url) as client:
            yield World(endpoint, tmp_path / "mirrors", client)
