"""The parts of a run as Ray Serve deployments: the services in the replica, learner and generators as its children.

A learner or generator is the very process that `sept run` would start, kept by the same keeper: it has its own
signals, threads and GPU memory, and ends with its replica. Serve replaces a replica whose node is lost; the learner
then resumes from its checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deploy.endpoints import Endpoints
from deploy.local.event_log import Journal
from deploy.local.processes import Spec
from deploy.local.run import inherited_environment
from deploy.local.supervisor import KILL_GRACE_S, Keeper, RestartPolicy
from deploy.operate.client import RunClient
from deploy.placement import visible_gpus
from deploy.ray_cluster.scaling import METRIC
from deploy.settings import Settings, load, redis_url, services_url
from learner.parallel import launch_env
from services.app import create_app
from services.errors import ConfigError, UnavailableError
from services.logs import configure_logs
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect_async
from services.weights.reader import WeightReader

PACKAGES = ("services", "learner", "generator", "deploy", "studies", "sept")
REPORT_EVERY_S = 2.0
"""How often a generator asks the services for the length of the queue."""


def code_digest() -> str:
    """BLAKE3 of our own source as this process sees it."""
    root, hasher = Path(__file__).parents[2], blake3()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        hasher.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return hasher.hexdigest()


@dataclass(frozen=True, slots=True)
class RayRun:
    """What every replica is told of the run; made by the driver, sent by Ray."""

    config: str
    """The resolved settings as TOML, without secrets."""
    places: Mapping[str, str] = field(repr=False)
    """run.dir, addresses and secrets as environment variables."""
    code: str
    """`code_digest` of the driver."""

    def check_code(self) -> None:
        """ConfigError when this node's source is another than the driver's."""
        mine = code_digest()
        if mine != self.code:
            raise ConfigError(
                f"this node runs other code ({mine[:12]}) than the driver ({self.code[:12]})",
                hint="install the same release on every node, or give Ray the source as working_dir",
            )

    def settings(self, folder: Path) -> Settings:
        """The settings, from a config file left in `folder`."""
        path = folder / "config.toml"
        path.write_text(self.config)
        return load(path, environ=self.places)


@serve.ingress()
class Services:
    """The HTTP app, next to the run's folder."""

    async def __init__(self, run: RayRun, *_others: DeploymentHandle) -> None:  # type: ignore[misc]  # Serve awaits it
        """`_others` makes the application consist of them too; they are not called."""
        run.check_code()
        configure_logs("services")
        with tempfile.TemporaryDirectory() as folder:
            settings = run.settings(Path(folder))
        run_folder = RunFolder(settings.run.dir).create()
        keys = Keys(run_folder.run_id)
        where = endpoints_of(settings)
        self._redis = await connect_async(where.redis_url, deadline_s=settings.deadlines.startup_s)
        self._app = create_app(
            folder=run_folder,
            store=WeightReader(run_folder.weights, keys.run_id),
            redis=self._redis,
            keys=keys,
            token=where.token,
            lost_after_s=settings.heartbeat.lost_after_s,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def __del__(self) -> None:
        self._app.state.notifier.close()
        await self._redis.aclose()


class KeptPart:
    """One part as a child of this replica: restarted when it dies, drained when the replica goes."""

    async def keep(
        self,
        run: RayRun,
        name: str,
        command: tuple[str, ...],
        logs: Path | None,
        environment: Mapping[str, str],
        **more: bool,
    ) -> None:
        """Start it. Its log goes to `logs`, else to a folder of this replica's own."""
        run.check_code()
        self._folder = Path(tempfile.mkdtemp(prefix="sept-"))
        self.settings = run.settings(self._folder)
        env = {**inherited_environment(), **environment, **run.places}
        argv = (sys.executable, "-m", "sept", *command, "--config", str(self._folder / "config.toml"))
        log = (logs or self._folder) / f"{name}.log"
        journal = Journal(self._folder / "keeper.log", lambda text: None)
        self._keeper = Keeper(Spec(name, argv, log, env), self._folder, RestartPolicy(), journal, **more)

    def check_health(self) -> None:
        """Serve asks now and then; raising has the replica replaced."""
        if self._keeper.task.done() and (error := self._keeper.task.exception()) is not None:
            raise error

    async def __del__(self) -> None:
        """Serve waits here before it ends the replica: the child drains."""
        if not hasattr(self, "_keeper"):
            return
        self._keeper.terminate()
        await asyncio.wait([self._keeper.task], timeout=self.settings.deadlines.drain_s + KILL_GRACE_S)
        self._keeper.kill()


class Learner(KeptPart):
    """The one learner, on a node that has the run's folder."""

    async def __init__(self, run: RayRun) -> None:  # type: ignore[misc]  # Serve awaits it
        logs = RunFolder(Path(run.places["SEPT_RUN__DIR"])).create().logs
        environment = {} if visible_gpus() else launch_env.ON_CPU
        await self.keep(run, "learner", ("learner",), logs, environment, may_finish=True)

    def outcome(self) -> str:
        """ "running", "finished", or why it failed."""
        if not self._keeper.task.done():
            return "running"
        error = self._keeper.task.exception()
        return "finished" if error is None else str(error)


class Generator(KeptPart):
    """One of the generators; needs nothing of the run but its addresses."""

    async def __init__(self, run: RayRun) -> None:  # type: ignore[misc]  # Serve awaits it
        name = f"generator-{serve.get_replica_context().replica_id.unique_id}"
        mirror = tempfile.mkdtemp(prefix="sept-mirror-")
        run = RayRun(run.config, {**run.places, "SEPT_RUN__DIR": mirror}, run.code)
        await self.keep(run, name, ("generator", "--id", name), None, {}, may_finish=False)
        self._client = RunClient(endpoints_of(self.settings))
        self._open_requests, self._asked = 0, -math.inf

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """How much there is to generate, for the policy that scales us."""
        if time.monotonic() - self._asked >= REPORT_EVERY_S:
            self._asked = time.monotonic()
            with contextlib.suppress(UnavailableError):  # the services are on their way; what was known stands
                status = await self._client.status()
                tasks = status.tasks_queued + status.tasks_leased
                self._open_requests = tasks * self.settings.sampling.rollouts_per_prompt
        return {METRIC: float(self._open_requests)}


def endpoints_of(settings: Settings) -> Endpoints:
    """Where a run whose settings name every address listens."""
    token = settings.services.token
    return Endpoints(
        redis_url=redis_url(settings),
        services_url=services_url(settings),
        token=token.get_secret_value() if token else None,
    )
