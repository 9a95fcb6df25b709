"""The parts of a run as Ray Serve deployments: services run in a replica, learner and generators as its children.

A learner or generator is the same process that `sept run` starts, supervised in the same way: it has its own signals,
threads and GPU memory, and ends with its replica. Serve replaces a replica whose node is lost; the learner then resumes
from its checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from deploy.endpoints import Endpoints
from deploy.engine_question import ask_about_model
from deploy.load_settings import load
from deploy.local.plan import inherited_environment
from deploy.local.processes import ProcessSpec
from deploy.local.supervised_part import KILL_GRACE_S, RestartPolicy, SupervisedPart
from deploy.local.supervisor_log import SupervisorLog
from deploy.operate.client import RunClient
from deploy.placement import visible_gpus
from deploy.ray_cluster.scaling import METRIC
from deploy.same_code import code_digest, sept_command
from deploy.settings import Settings, redis_url, services_url, token_of
from learner.parallel import launch_env
from services.api.tokens import Role
from services.app import create_app
from services.errors import ConfigError, ModelError, UnavailableError
from services.logs import configure_logs
from services.run_folder import RunFolder
from services.server import tokens_of
from services.streams.connection import Keys, connect_async
from services.weights.reader import WeightReader

REPORT_EVERY_S = 2.0
"""How often a generator asks the services for the length of the queue."""


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
        role_tokens = tokens_of(settings.services)
        where = endpoints_of(settings)
        self._redis = await connect_async(where.redis_url, deadline_s=settings.deadlines.startup_s)
        self._app = create_app(
            folder=run_folder,
            store=WeightReader(run_folder.weights, keys.run_id),
            redis=self._redis,
            keys=keys,
            token=role_tokens.pop(Role.STEER, None),
            role_tokens=role_tokens,
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

    async def check_health(self) -> None:
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
    """The one learner, or its node 0, on a Ray node that has the run's folder.

    A learner of several nodes has a placement group: this replica is in its first bundle, and starts an actor in each
    of the others. Ray moves a bundle whose Ray node is lost to another one, and starts its actor there again.
    """

    async def __init__(self, run: RayRun) -> None:  # type: ignore[misc]  # Serve awaits it
        folder = RunFolder(Path(run.environment["SEPT_RUN__DIR"])).create()
        extra_env = {} if visible_gpus() else launch_env.ON_CPU
        command = ("learner", "--node", "0")
        await self.start(run, "learner", command, may_finish=True, log=folder.log_of("learner"), extra_env=extra_env)
        self._nodes: list[Any] = []
        self._ends: list[asyncio.Future[None]] = []
        for node in range(1, self.settings.training.nodes):
            actor = ray.remote(LearnerNode).options(**_in_bundle(node), max_restarts=-1, max_task_retries=-1).remote()
            self._nodes.append(actor)
            self._ends.append(asyncio.wrap_future(actor.run.remote(run, node, folder.run_id).future()))

    def outcome(self) -> str:
        """ "running", "finished", or why it failed."""
        if not self._part.task.done():
            return "running"
        error = self._part.task.exception()
        return "finished" if error is None else str(error)

    async def check_health(self) -> None:
        """As of every replica; a node that cannot be kept running fails the learner."""
        await super().check_health()
        for end in self._ends:
            if end.done():
                end.result()

    async def __del__(self) -> None:
        """Serve waits here: node 0 ends the learner in order, and no node is started again."""
        for actor in getattr(self, "_nodes", ()):
            actor.stop.remote()
        await super().__del__()


class LearnerNode(SupervisedReplica):
    """A further node of the learner, with a GPU for each of its ranks; the run's folder need not be there."""

    async def run(self, run: RayRun, node: int, run_id: str) -> None:
        """Keep it running until the learner ends; UnavailableError when it cannot be kept running."""
        shared = RunFolder(Path(run.environment["SEPT_RUN__DIR"]))
        if not (shared.identity.exists() and shared.run_id == run_id):
            own = RunFolder(Path(tempfile.mkdtemp(prefix="sept-node-"))).create(run_id)
            run = RayRun(run.config, {**run.environment, "SEPT_RUN__DIR": str(own.path)}, run.code)
        extra_env = {} if visible_gpus() else launch_env.ON_CPU
        command = ("learner", "--node", str(node))
        await self.start(run, f"learner-node-{node}", command, may_finish=True, extra_env=extra_env)
        await self._part.task

    async def stop(self) -> None:
        """Let it end with the learner, and do not start it again."""
        if hasattr(self, "_part"):
            self._part.terminate()


def _in_bundle(node: int) -> dict[str, Any]:
    """Options of the actor of that node: its bundle, with all GPUs that the bundle has."""
    group = ray.util.get_current_placement_group()
    assert group is not None, "a learner of several nodes is placed by a group"
    return {
        "num_cpus": 0,
        "num_gpus": group.bundle_specs[node].get("GPU", 0),
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node),
    }


class Generator(SupervisedReplica):
    """One of the generators. It needs only the run's addresses, not its folder.

    Its mirror is in a folder that the generators of its node share, so that they download once; it goes with the
    replica.
    """

    async def __init__(self, run: RayRun) -> None:  # type: ignore[misc]  # Serve awaits it
        name = f"generator-{serve.get_replica_context().replica_id.unique_id}"
        on_node = RunFolder(folder_on_node(Path(ray.get_runtime_context().get_temp_dir())))
        self._mirror = on_node.mirror_of(name)
        run = RayRun(run.config, {**run.environment, "SEPT_RUN__DIR": str(on_node.path)}, run.code)
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

    async def __del__(self) -> None:
        """As of every replica; the next one has another name, and no use for this mirror."""
        await super().__del__()
        await asyncio.to_thread(shutil.rmtree, self._mirror, ignore_errors=True)


def folder_on_node(temp_dir: Path) -> Path:
    """Where generators of one node keep the weights: in the folder that `ray start --temp-dir` names, where Ray spills
    objects to and which therefore has the room."""
    return temp_dir / "sept"


def refusal_of_engine(run: RayRun) -> tuple[str, str] | None:
    """Why this node's engine cannot serve the model, and what to do; None if it can, and where that is not known."""
    with tempfile.TemporaryDirectory(prefix="sept-") as folder:
        settings = run.settings(Path(folder))
    try:
        asyncio.run(ask_about_model(settings))
    except ModelError as error:
        return error.message, error.hint
    return None


def endpoints_of(settings: Settings) -> Endpoints:
    """The endpoints of a run whose settings name every address."""
    return Endpoints(
        redis_url=redis_url(settings),
        services_url=services_url(settings),
        token=token_of(settings),
    )
