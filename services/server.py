"""Runs the HTTP app on an address until SIGTERM, then lets open requests finish."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import structlog
import uvicorn
from fastapi import FastAPI

from services.api.change_notifier import ChangeNotifier
from services.api.connections import GuardedProtocol, allow_connections
from services.api.tokens import Role
from services.app import create_app
from services.config import DeadlinesConfig, ServicesConfig
from services.errors import ConfigError
from services.net import BACKLOG, is_loopback, listen, listener_url
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect_async
from services.weights.reader import WeightReader

ACCEPTED_AT_ONCE = 32
"""Connections that are accepted before the event loop looks at the others again."""

log = structlog.get_logger()


def serve(
    *,
    folder: RunFolder,
    redis_url: str,
    services: ServicesConfig,
    deadlines: DeadlinesConfig,
    listening: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve one run's folder and queues until SIGTERM or SIGINT; returns when the last request is answered.

    `listening` gets the address once connections are accepted (port 0 takes a free one). ConfigError when the
    address is open to other machines and there is no token; UnavailableError when it is taken or Redis is not there.
    """
    tokens = tokens_of(services)
    token = tokens.pop(Role.STEER, None)
    if token is None and not is_loopback(services.host):
        raise ConfigError(
            f"services.host {services.host!r} is open to other machines, but services.token is not set",
            hint="set services.token, or bind to 127.0.0.1",
        )
    certificate = certificate_of(services)
    listener = listen(services.host, services.port, setting="services.port")

    async def run() -> None:
        redis = await connect_async(redis_url, deadline_s=deadlines.startup_s)
        try:
            keys = Keys(folder.run_id)
            store = WeightReader(folder.weights, keys.run_id)
            app = create_app(folder=folder, store=store, redis=redis, keys=keys, token=token, role_tokens=tokens)
            await run_app(app, listener, drain_s=deadlines.drain_s, listening=listening, certificate=certificate)
        finally:
            await redis.aclose()

    GuardedProtocol.max_connections = allow_connections()
    with listener:
        asyncio.run(run())


def tokens_of(services: ServicesConfig) -> dict[Role, str]:
    """The tokens that the settings give, by role."""
    given = {
        Role.STEER: services.token,
        Role.GENERATOR: services.generator_token,
        Role.WATCH: services.watch_token,
    }
    return {role: text for role, token in given.items() if token and (text := token.get_secret_value())}


class Certificate(NamedTuple):
    """PEM files of a certificate, with its authorities', and of its key."""

    file: Path
    key: Path


def certificate_of(services: ServicesConfig) -> Certificate | None:
    """What the services prove themselves with; None without a key. ConfigError when the files cannot be used."""
    if services.tls_key is None:
        return None
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(services.tls_cert or "", services.tls_key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"services.tls_cert {services.tls_cert} and services.tls_key {services.tls_key} cannot be used: {error}",
            hint="name two PEM files that belong together and that this user may read",
        ) from error
    return Certificate(services.tls_cert or Path(), services.tls_key)


async def run_app(
    app: FastAPI,
    listener: socket.socket,
    *,
    drain_s: float,
    listening: Callable[[str], None] = lambda url: None,
    certificate: Certificate | None = None,
) -> None:
    """Answer on `listener` until a signal; then at most `drain_s` for what is under way."""
    config = uvicorn.Config(
        app,
        ssl_certfile=certificate.file if certificate else None,
        ssl_keyfile=certificate.key if certificate else None,
        http=GuardedProtocol,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        timeout_graceful_shutdown=max(1, round(drain_s)),
        backlog=ACCEPTED_AT_ONCE,
    )
    server = DrainingServer(config, app.state.notifier)
    address = listener_url(listener, tls=certificate is not None)
    log.info("services_listening", url=address)
    # the socket listens since `listen`: connections queue in the kernel until the app is up
    listening(address)
    await server.serve(sockets=[listener])
    log.info("services_stopped")


class DrainingServer(uvicorn.Server):
    """Ends waiting requests on a signal, and leaves the process's exit status to the caller."""

    def __init__(self, config: uvicorn.Config, notifier: ChangeNotifier) -> None:
        super().__init__(config)
        self._notifier = notifier

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, which takes one number for connections accepted at once and for the kernel's queue of them."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. SIGINT while draining: drop what is left."""
        # uvicorn's own also raises the signal again afterwards, which would make a clean end look like a crash
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        self._notifier.close()
