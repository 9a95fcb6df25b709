"""What the tests of runs on Ray share: a Redis, the small world, and a look at the run through Serve's own port."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.client import RunClient
from deploy.endpoints import Endpoints
from deploy.ray_app import Options
from deploy.settings import Settings, load
from services.contracts import StatusSnapshot
from services.errors import ContractError, UnavailableError
from tests import worlds

LOOK_EVERY_S = 0.5
TOKEN = "ray-test"


@dataclass
class RayWorld:
    """A run to be placed on a cluster of this machine."""

    folder: Path
    config: Path
    redis_url: str
    port: int

    @classmethod
    def make(cls, folder: Path, redis_url: str, *, rounds: int, response_tokens: int = 32) -> RayWorld:
        config = worlds.write(folder, rounds=rounds, response_tokens=response_tokens, in_flight=8)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        return cls(folder, config, redis_url, port)

    def settings(self) -> Settings:
        environ = {"SEPT_REDIS__URL": self.redis_url, "SEPT_SERVICES__TOKEN": TOKEN}
        return load(self.config, [f"services.port={self.port}"], environ=environ)

    def options(self, *, most: int, downscale_after_s: float = 300.0) -> Options:
        return Options(
            config=self.config, http_port=self.port, max_generators=most, downscale_after_s=downscale_after_s
        )

    def found(self) -> list[tuple[int, float, list[str]]]:
        return worlds.rounds_of(self.folder / "run")

    def expected(self) -> list[tuple[int, float, list[str]]]:
        return worlds.expected_rounds(self.config, self.folder / "model", self.folder / "prompts.jsonl")

    def tell(self, wish: Callable[[RunClient], Awaitable[None]]) -> None:
        """Pass one wish to the run."""

        async def ask() -> None:
            async with self._client() as client:
                await wish(client)

        asyncio.run(ask())

    def status(self) -> StatusSnapshot | None:
        """The run's status; None while the services are away."""

        async def ask() -> StatusSnapshot:
            async with self._client() as client:
                return await client.status()

        try:
            return asyncio.run(ask())
        except (UnavailableError, ContractError):
            return None

    def until(self, what: str, condition: Callable[[StatusSnapshot], bool], within_s: float) -> float:
        """Seconds until the status satisfies the condition."""
        started = time.monotonic()
        last: StatusSnapshot | None = None
        while (waited := time.monotonic() - started) < within_s:
            last = self.status() or last
            if last is not None and condition(last):
                return waited
            time.sleep(LOOK_EVERY_S)
        raise AssertionError(f"no {what} within {within_s:.0f} s; last status: {last}")

    def _client(self) -> RunClient:
        return RunClient(Endpoints(redis_url="", services_url=f"http://127.0.0.1:{self.port}", token=TOKEN))


def alive(status: StatusSnapshot) -> int:
    """Generators that work."""
    return sum(not generator.lost for generator in status.generators)
