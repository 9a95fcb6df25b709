"""What the tests of runs on Ray share: a Redis, the small world, and a look at the run through Serve's own port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.endpoints import Endpoints
from deploy.load_settings import load
from deploy.operate.client import RunClient
from deploy.ray_cluster.app import Options
from deploy.settings import Settings
from services.contracts import StatusSnapshot
from services.errors import ContractError, UnavailableError
from tests.support import scripted_run
from tests.support.watching import Watched

TOKEN = "ray-test"


@dataclass
class RayWorld(Watched):
    """A run to be placed on a cluster of this machine."""

    folder: Path
    config: Path
    redis_url: str
    port: int
    sets: tuple[str, ...] = ()

    @classmethod
    def make(
        cls, folder: Path, redis_url: str, *, rounds: int, response_tokens: int = 32, sets: tuple[str, ...] = ()
    ) -> RayWorld:
        config = scripted_run.write(folder, rounds=rounds, response_tokens=response_tokens, in_flight=8)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        return cls(folder, config, redis_url, port, sets)

    def settings(self) -> Settings:
        environ = {"SEPT_REDIS__URL": self.redis_url, "SEPT_SERVICES__TOKEN": TOKEN}
        return load(self.config, [f"services.port={self.port}", *self.sets], environ=environ)

    def options(self, *, most: int, least: int = 1, downscale_after_s: float = 300.0) -> Options:
        return Options(
            config=self.config,
            http_port=self.port,
            min_generators=least,
            max_generators=most,
            downscale_after_s=downscale_after_s,
        )

    def found(self) -> list[tuple[int, float, list[str]]]:
        return scripted_run.rounds_of(self.folder / "run")

    def expected(self) -> list[tuple[int, float, list[str]]]:
        return scripted_run.expected_rounds(self.config, self.folder / "model", self.folder / "prompts.jsonl")

    def tell(self, wish: Callable[[RunClient], Awaitable[None]]) -> None:
        """Pass one wish to the run."""

        async def ask() -> None:
            async with self._client() as client:
                await wish(client)

        asyncio.run(ask())

    def status(self) -> StatusSnapshot | None:
        async def ask() -> StatusSnapshot:
            async with self._client() as client:
                return await client.status()

        try:
            return asyncio.run(ask())
        except (UnavailableError, ContractError):
            return None

    def _client(self) -> RunClient:
        return RunClient(Endpoints(redis_url="", services_url=f"http://127.0.0.1:{self.port}", token=TOKEN))
