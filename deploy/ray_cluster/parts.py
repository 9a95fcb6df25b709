"""The parts of a run as Ray Serve deployments: services run in a replica, learner and generators as its children.

A learner or generator is the same process that `sept run` starts, supervised in the same way: it has its own signals,
threads and GPU memory, and ends with its replica. Serve replaces a replica whose node is lost; the learner then resumes
from its checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
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
from deploy.load_settings import load
from deploy.local.plan import inherited_environment
from deploy.local.processes import ProcessSpec
from deploy.local.supervised_part import KILL_GRACE_S, RestartPolicy, SupervisedPart
from deploy.local.supervisor_log import SupervisorLog
from deploy.operate.client import RunClient
from deploy.placement import visible_gpus
from deploy.ray_cluster.scaling import METRIC
from deploy.same_code import sept_command
from deploy.settings import Settings, redis_url, services_url, token_of
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
    """BLAKE3 of sept's own source on this node."""
    root, hasher = Path(__file__).parents[2], blake3()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        hasher.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return hasher.hexdigest()


@dataclass(frozen=True, slots=True)
class RayRun:
    """What every replica needs to know of the run. Producer: the driver; Ray sends it."""

    config: str
    """The resolved settings as TOML, without secrets."""
    environment: Mapping[str, str] = field(repr=False)
    """run.dir, addresses and secrets as environment variables."""
    code: str
    """`code_digest` of the driver."""

    def check_code(self) -> None:
        """ConfigError when this node's source differs from the driver's."""
        mine = code_digest()
        if mine != self.code:
            raise ConfigError(
                f"this node runs other code ({mine[:12]}) than the driver ({self.code[:12]})",
                hint="install the same release on every node, or give Ray the source as working_dir",
            )

    def settings(self, folder: Path) -> Settings:
        """The settings, from a config file left in `folder`."""
        path = RunFolder(folder).config
        path.write_text(self.config)
        return load(path, environ=self.environment)


@serve.ingress()
class Services:
    """The HTTP app, next to the run's folder."""

    async def __init__(self, run: RayRun, *_others: DeploymentHandle) -> None:  # type: ignore[misc]  # Serve awaits it
        """`_others` are not called: binding them here makes them part of the application."""
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
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def __del__(self) -> None:
        self._app.state.notifier.close()
        await self._redis.aclose()


class SupervisedReplica:
    """One part as a child of this replica: restarted when it dies, drained when the replica goes."""

    async def start(
        self,
        run: RayRun,
        name: str,
        command: tuple[str, ...],
        *,
        may_finish: bool,
        log: Path | None = None,
        extra_env: Mapping[str, str] | None = None,
    ) -> None:
        """Start it. It writes to `log`; None: to a temporary folder of this replica."""
        run.check_code()
        self._folder = Path(tempfile.mkdtemp(prefix="sept-"))
        self.settings = run.settings(self._folder)
        own = RunFolder(self._folder)
        own.logs.mkdir()
        env = {**inherited_environment(), **(extra_env or {}), **run.environment}
        argv = sept_command(*command, "--config", str(own.config))
        spec = ProcessSpec(name, argv, log or own.log_of(name), env)
        supervisor_log = SupervisorLog(own.log_of("supervisor"), lambda text: None)
        self._part = SupervisedPart(spec, self._folder, RestartPolicy(), supervisor_log, may_finish=may_finish)

    def check_health(self) -> None:
        """Serve calls this periodically, and replaces the replica when it raises."""
        if self._part.task.done() and (error := self._part.task.exception()) is not None:
            raise error

    async def __del__(self) -> None:
        """Serve waits here before it ends the replica: the child drains."""
        if not hasattr(self, "_part"):
            return
        self._part.terminate()
        await asyncio.wait([self._part.task], timeout=self.settings.deadlines.drain_s + KILL_GRACE_S)
        self._part.kill()


class Learner(SupervisedReplica):
    """The one learner, on a node that has the run's folder."""

    async def __init__(self, run: RayRun) -> None:  # type: ignore[misc]  # Serve awaits it
        log = RunFolder(Path(run.environment["SEPT_RUN__DIR"])).create().log_of("learner")
        extra_env = {} if visible_gpus() else launch_env.ON_CPU
        await self.start(run, "learner", ("learner",), may_finish=True, log=log, extra_env=extra_env)

    def outcome(self) -> str:
        """ "running", "finished", or why it failed."""
        if not self._part.task.done():
            return "running"
        error = self._part.task.exception()
        return "finished" if error is None else str(error)


class Generator(SupervisedReplica):
    """One of the generators. It needs only the run's addresses, not its folder."""

    async def __init__(self, run: RayRun) -> None:  # type: ignore[misc]  # Serve awaits it
        name = f"generator-{serve.get_replica_context().replica_id.unique_id}"
        folder_of_mirror = tempfile.mkdtemp(prefix="sept-mirror-")
        run = RayRun(run.config, {**run.environment, "SEPT_RUN__DIR": folder_of_mirror}, run.code)
        await self.start(run, name, ("generator", "--id", name), may_finish=False)
        self._client = RunClient(endpoints_of(self.settings))
        self._open_requests, self._asked = 0, -math.inf

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """How much there is to generate: the number that Serve's autoscaling reads."""
        if time.monotonic() - self._asked >= REPORT_EVERY_S:
            self._asked = time.monotonic()
            with contextlib.suppress(UnavailableError):  # the services start or restart: keep the last number
                status = await self._client.status()
                tasks = status.tasks_queued + status.tasks_leased
                self._open_requests = tasks * self.settings.sampling.rollouts_per_prompt
        return {METRIC: float(self._open_requests)}


def endpoints_of(settings: Settings) -> Endpoints:
    """The endpoints of a run whose settings name every address."""
    return Endpoints(
        redis_url=redis_url(settings),
        services_url=services_url(settings),
        token=token_of(settings),
    )
