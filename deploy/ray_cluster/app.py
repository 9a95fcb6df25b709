"""A run on a Ray cluster: which deployments it has, where each is placed and how many there are.

    serve run deploy.ray_cluster.app:app config=run.toml max_generators=8      # Serve's own command
    sept ray run.toml --max-generators 8                                       # the same, and waits for the end

Every node must reach Redis at redis.url. The learner and the services need the run's folder: on a cluster of several
nodes, those that have it offer the resource sept_store: ray start --resources '{"sept_store": 1}'.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from deploy.load_settings import load
from deploy.ray_cluster.cluster_memory import ask_nodes, check_cluster
from deploy.ray_cluster.defaults import DOWNSCALE_AFTER_S, MIN_GENERATORS, SERVE_PORT, LearnerStrategy
from deploy.ray_cluster.parts import Generator, Learner, RayRun, Services, refusal_of_engine
from deploy.resolved_settings import to_resolved
from deploy.run_memory import shape_of_model
from deploy.same_code import code_digest
from deploy.settings import Settings, require, token_of
from generator.engines.ask import DEADLINE_S as ENGINE_ANSWERS_WITHIN_S
from learner.config import TrainingConfig
from learner.input_checks import check_inputs
from services.errors import ConfigError, ModelError, UnavailableError
from services.net import LOOPBACK, reachable_url

APP = "sept"
STORE = "sept_store"
"""Ray resource of the nodes that have the run's folder."""
STORE_SHARE = 0.001
"""So small that it decides where a replica is placed and limits nothing."""
NODE_SHARE = 0.001
"""CPU that a further node of a learner on CPU claims: enough to be placed where there are CPUs."""
HEALTH_PERIOD_S = 5.0
LOOK_BACK_S = 15.0
"""The longest queue of this time counts: generators must not go because a round ends."""
LEARNER_CHECK_S = 2.0
GRACE_S = 10.0
"""For a replica to end after its part has drained."""


class Options(BaseModel):
    """Where and how many: arguments of `serve run deploy.ray_cluster.app:app name=value ...`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path
    sets: tuple[str, ...] = ()
    """section.key=value, as of --set."""
    min_generators: int = Field(default=MIN_GENERATORS, ge=1)
    max_generators: int | None = Field(default=None, ge=1)
    """Unset: generator.count."""
    requests_per_generator: int | None = Field(default=None, ge=1)
    """One generator is started for this many open requests; unset: generator.max_in_flight."""
    downscale_after_s: float = Field(default=DOWNSCALE_AFTER_S, ge=0)
    """A generator ends when there was too little to do for this long; starting an engine takes minutes."""
    generator_cpus: float = Field(default=1.0, gt=0)
    gpus: bool | None = None
    """A GPU for each rank of the learner, generator.tensor_parallel for each generator; unset: if there are any."""
    learner_strategy: LearnerStrategy = "STRICT_SPREAD"
    """Where the nodes of a learner with training.nodes > 1 are placed."""
    on_store: bool | None = None
    """Tie learner and services to nodes with the resource sept_store; unset: if the cluster has such nodes now."""
    http_port: int = Field(default=SERVE_PORT, ge=1, le=65535)
    """Port of Serve's proxies, which every node that runs a generator has."""


def app(args: Options) -> Application:
    """The application of `serve run deploy.ray_cluster.app:app config=...`.

    Raises ConfigError for what a run needs and the cluster lacks.
    """
    return checked_application(load(args.config, args.sets), args)


def checked_application(settings: Settings, options: Options) -> Application:
    """The application, if the engine can serve the model; ModelError with its reason if it cannot."""
    resources = ray.cluster_resources()
    ask_about_model_on_ray(settings, options, gpus=_uses_gpus(options, resources))
    return build_application(settings, options, resources, nodes=len(_alive_nodes()))


def ask_about_model_on_ray(
    settings: Settings, options: Options, *, gpus: bool, deadline_s: float = ENGINE_ANSWERS_WITHIN_S
) -> None:
    """`ask_about_model` on a node that has room for a generator; ModelError if the engine refuses the model.

    Not known, and so no error: where that node has not the model's folder, or none has room within the deadline.
    """
    if settings.generator.engine != "vllm":
        return
    placed = {"num_cpus": options.generator_cpus, "num_gpus": settings.generator.tensor_parallel if gpus else 0}
    asked = (
        ray.remote(refusal_of_engine)
        .options(**placed, max_retries=0)
        .remote(RayRun(to_resolved(settings), {}, code_digest()))
    )
    answered, _ = ray.wait([asked], timeout=deadline_s)
    if not answered:
        ray.cancel(asked, force=True)
        return
    refusal = ray.get(asked)
    if refusal is not None:
        message, hint = refusal
        raise ModelError(message, hint=hint)


def build_application(settings: Settings, options: Options, resources: dict[str, float], *, nodes: int) -> Application:
    """Three deployments, placed on what the cluster has."""
    settings = settings_for_ray(settings, options)
    run = RayRun(to_resolved(settings), _environment(settings), code_digest())
    for_generators = replace(run, environment=_environment_of_generators(settings))
    store = store_resource({**resources, **({STORE: 1.0} if options.on_store else {})}, nodes)
    gpus = _uses_gpus(options, resources)
    drain_s = settings.deadlines.drain_s + GRACE_S
    common: dict[str, Any] = {
        "health_check_period_s": HEALTH_PERIOD_S,
        "graceful_shutdown_timeout_s": drain_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "logging_config": {"enable_access_log": False},
    }
    deployment: Any = serve.deployment
    check_nodes(settings, options, nodes)
    placed = learner_placement(settings.training, store, options.learner_strategy, gpus=gpus)
    learner = deployment(Learner, name="learner", **placed, **common)
    generator = deployment(
        Generator,
        name="generator",
        ray_actor_options={
            "num_cpus": options.generator_cpus,
            # all on one node: an actor is never split
            "num_gpus": settings.generator.tensor_parallel if gpus else 0,
        },
        autoscaling_config=scaling(settings, options),
        **common,
    )
    services = deployment(Services, name="services", ray_actor_options={"num_cpus": 0, "resources": store}, **common)
    bound: Application = services.bind(run, learner.bind(run), generator.bind(for_generators))
    return bound


def _uses_gpus(options: Options, resources: dict[str, float]) -> bool:
    return options.gpus if options.gpus is not None else resources.get("GPU", 0) > 0


def learner_placement(
    training: TrainingConfig, store: dict[str, float], strategy: LearnerStrategy, *, gpus: bool
) -> dict[str, Any]:
    """Where Serve puts the learner: the actor of node 0 where the run's folder is; a bundle for each node of several.

    The learner claims no CPU: a generator may have the last one of the only node with the store, and the learner could
    never move there. It does claim its GPUs, as two parts cannot share one.
    """
    count = training.ranks_per_node if gpus else 0
    placed: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0, "num_gpus": count, "resources": store}}
    if training.nodes > 1:
        own = {"GPU": float(count)} if gpus else {"CPU": NODE_SHARE}
        placed["placement_group_bundles"] = [{**own, **store}, *([own] * (training.nodes - 1))]
        placed["placement_group_strategy"] = strategy
    return placed


def check_nodes(settings: Settings, options: Options, nodes: int) -> None:
    """ConfigError when the learner needs more Ray nodes than there are."""
    wanted = settings.training.nodes
    if options.learner_strategy == "STRICT_SPREAD" and wanted > nodes:
        raise ConfigError(
            f"training.nodes is {wanted}, the cluster has {nodes} nodes, and each part of the learner needs its own",
            hint="add nodes, lower training.nodes, or pass --learner-strategy PACK",
        )


def scaling(settings: Settings, options: Options) -> dict[str, Any]:
    """Serve's autoscaling by the length of the run's queue."""
    most = options.max_generators or max(1, settings.generator.count)
    if most < options.min_generators:
        raise ConfigError(
            f"max_generators ({most}) is less than min_generators ({options.min_generators})",
            hint="max_generators is generator.count unless it is given",
        )
    per_generator = options.requests_per_generator or settings.generator.max_in_flight
    return {
        "min_replicas": options.min_generators,
        "max_replicas": most,
        # replicas report every 10 s unless RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S says otherwise
        "look_back_period_s": LOOK_BACK_S,
        "aggregation_function": "max",
        "upscale_delay_s": 0,
        "downscale_delay_s": options.downscale_after_s,
        "policy": {
            "policy_function": "deploy.ray_cluster.scaling:QueuePolicy",
            "policy_kwargs": {"requests_per_generator": per_generator},
        },
    }


def settings_for_ray(settings: Settings, options: Options) -> Settings:
    """The settings with services.url as replicas reach it; ConfigError for what the settings lack for a cluster."""
    require(settings, "model.path", "data.path")
    if settings.redis.url is None:
        raise ConfigError(
            "redis.url is not set: parts on several nodes need one Redis",
            hint="start a Redis that every node reaches and set SEPT_REDIS__URL=redis://:PASSWORD@HOST:6379/0",
        )
    if token_of(settings) is None:
        raise ConfigError(
            "services.token is not set: Serve's proxies answer other machines",
            hint="set SEPT_SERVICES__TOKEN to a secret",
        )
    url = settings.services.url or reachable_url(LOOPBACK, options.http_port)
    return settings.model_copy(update={"services": settings.services.model_copy(update={"url": url})})


def store_resource(resources: dict[str, float], nodes: int) -> dict[str, float]:
    """What ties a replica to the nodes that have the run's folder; nothing where there is only one node."""
    if STORE in resources:
        return {STORE: STORE_SHARE}
    if nodes > 1:
        raise ConfigError(
            f"none of the {nodes} nodes says that it has the run's folder",
            hint=f"start those that have it with: ray start ... --resources '{{\"{STORE}\": 1}}'",
        )
    return {}


def _environment(settings: Settings) -> dict[str, str]:
    """Addresses and secrets of services and learner. Ray's dashboard does not show what replicas are made of."""
    services = settings.services
    secrets = {
        "SEPT_REDIS__URL": settings.redis.url,
        "SEPT_SERVICES__TOKEN": services.token,
        "SEPT_SERVICES__GENERATOR_TOKEN": services.generator_token,
        "SEPT_SERVICES__WATCH_TOKEN": services.watch_token,
    }
    given = {name: secret.get_secret_value() for name, secret in secrets.items() if secret is not None}
    return {"SEPT_RUN__DIR": str(settings.run.dir.resolve()), **given}


def _environment_of_generators(settings: Settings) -> dict[str, str]:
    """What generators need, with the token and the Redis user of their role where the settings give them."""
    services, redis = settings.services, settings.redis
    secrets = {
        "SEPT_REDIS__URL": redis.generator_url or redis.url,
        "SEPT_SERVICES__TOKEN": services.generator_token or services.token,
    }
    return {name: secret.get_secret_value() for name, secret in secrets.items() if secret is not None}


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def run_on_ray(settings: Settings, options: Options, say: Callable[[str], None]) -> None:
    """Deploy on the running cluster, wait until the learner ends, remove the application. Ctrl-C drains as well.

    ConfigError before anything is deployed when it cannot fit, ModelError when the engine cannot serve the model.
    """
    # not for `serve run`: under KubeRay nodes may come later
    gpus, shape = _uses_gpus(options, ray.cluster_resources()), shape_of_model(settings.model.path)
    check_cluster(shape, settings, ask_nodes(), generators=options.min_generators, gpus=gpus)
    application = checked_application(settings, options)
    serve.start(http_options={"host": settings.services.host, "port": options.http_port})
    try:
        serve.run(application, name=APP, route_prefix="/")
        say(f"serving on port {options.http_port}; `serve status` shows the parts")
        outcome = wait_for_end(say)
    finally:
        serve.delete(APP)
    if outcome != "finished":
        raise UnavailableError(outcome, hint="fix what it names, then start again: the run resumes")


def wait_for_end(say: Callable[[str], None], *, every_s: float = LEARNER_CHECK_S) -> str:
    """The learner's outcome; waits while Ray replaces the learner on another node."""
    learner: Any = serve.get_deployment_handle("learner", APP)
    lost = False
    while True:
        try:
            outcome: str = learner.outcome.remote().result(timeout_s=10.0)
        except (ray.exceptions.RayError, TimeoutError) as error:
            if not lost:
                say(f"the learner does not answer ({type(error).__name__}): Ray starts it again")
            lost, outcome = True, "running"
        else:
            if lost:
                say("the learner is back")
            lost = False
        if outcome != "running":
            return outcome
        time.sleep(every_s)


def start_ray(config: Path, sets: Sequence[str], options: dict[str, Any], say: Callable[[str], None]) -> None:
    """`sept ray`: join the cluster of RAY_ADDRESS, or start one on this machine, and run there."""
    settings = load(config, sets)
    made = Options(config=config, sets=tuple(sets), **options)
    settings_for_ray(settings, made)  # fails before a cluster is started
    check_inputs(settings)
    ray.init(runtime_env=source_env(), log_to_driver=False)
    try:
        run_on_ray(settings, made, say)
    finally:
        ray.shutdown()


def source_env(root: Path = Path(__file__).parents[2]) -> dict[str, Any]:
    """Ships a source tree to the other nodes; an installed release is there already.

    Without a folder to ship, Ray would put the driver's working directory into the path of every worker, and whatever
    modules somebody has there.
    """
    if not (root / "pyproject.toml").exists():
        empty = Path(tempfile.mkdtemp(prefix="sept-ray-"))
        (empty / "EMPTY").touch()
        return {"working_dir": str(empty)}
    return {
        "working_dir": str(root),
        # with what .gitignore names, and Ray's own .git and .venv
        "excludes": ["/runs", "/tests", "/docs", "__pycache__"],
    }
