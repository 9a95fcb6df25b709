"""How each part is started from the settings: which sections it gets, and nothing more. Heavy imports inside.

Each function blocks until its part has finished or was drained, and raises SeptError for what a person can mend.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from pathlib import Path

from deploy.locks import learner_lock
from deploy.settings import Settings, redis_url, require, services_url
from learner.outcome import Outcome
from services.logs import configure_logs
from services.run_folder import RunFolder


def start_services(settings: Settings) -> None:
    """Serve weight sync, status, metrics and control until SIGTERM."""
    from services.server import serve

    configure_logs("services")
    serve(
        folder=RunFolder(settings.run.dir).create(),
        redis_url=redis_url(settings),
        services=settings.services,
        heartbeat=settings.heartbeat,
        deadlines=settings.deadlines,
    )


def start_learner(settings: Settings) -> Outcome:
    """Train until the last round or a signal. Resumes from the run folder. One of several ranks does its part."""
    from learner.parallel.ranks import join_ranks
    from learner.run import run_follower, run_learner

    require(settings, "model.path", "data.path")
    folder = RunFolder(settings.run.dir).create()
    with join_ranks(settings.training.ranks) as ranks:
        configure_logs("learner" if ranks.is_leader else f"learner-rank-{ranks.rank}")
        if not ranks.is_leader:
            run_follower(folder, settings, ranks)
            return Outcome.FINISHED
        with learner_lock(folder.path, settings.deadlines.startup_s):
            return run_learner(folder, settings, redis_url=redis_url(settings), ranks=ranks)


def start_evaluator(settings: Settings) -> Outcome:
    """Evaluate the model, or go on with it, until every answer is graded or a signal comes."""
    from learner.run import run_evaluator

    configure_logs("evaluator")
    require(settings, "model.path", "evaluation.benchmarks")
    return run_evaluator(RunFolder(settings.run.dir).create(), settings, redis_url=redis_url(settings))


def start_generator(settings: Settings, generator_id: str) -> None:
    """Sample for the run until SIGTERM. Needs nothing of the run but its addresses."""
    from generator.run import Peers, run_generator

    configure_logs(generator_id)
    token = settings.services.token
    peers = Peers(
        redis_url=redis_url(settings),
        services_url=services_url(settings),
        token=token.get_secret_value() if token else None,
        lease_s=settings.redis.lease_s,
    )
    asyncio.run(
        run_generator(
            generator_id,
            peers=peers,
            config=settings.generator,
            max_model_len=max_model_len(settings),
            deadlines=settings.deadlines,
            heartbeat=settings.heartbeat,
            cache=mirror_folder(settings, generator_id),
        )
    )


def max_model_len(settings: Settings) -> int:
    """The longest prompt plus response that the run can produce, in tokens."""
    return settings.data.max_prompt_tokens + settings.sampling.max_response_tokens


def mirror_folder(settings: Settings, generator_id: str) -> Path:
    """Where this generator keeps its verified copy of the weights."""
    return settings.run.dir / "mirrors" / generator_id


def own_generator_id() -> str:
    """A name for a generator that was started by hand: this host and process."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40].strip("-") or "host"
    return f"generator-{host}-{os.getpid()}"
