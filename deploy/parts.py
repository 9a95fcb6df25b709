"""How each part is started from the settings. Each function imports its part's heavy libraries itself.

Each function blocks until its part has finished or has drained. It raises SeptError for what a person can fix.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket

from deploy.locks import learner_lock
from deploy.settings import Settings, longest_sequence, redis_url, require, services_url, token_of
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
        weight_sync=settings.weight_sync,
        deadlines=settings.deadlines,
    )


def start_learner(settings: Settings) -> bool:
    """Train until the last round; False when SIGTERM came first. Resumes from the run folder.

    One of several ranks does its part.
    """
    from learner.parallel.ranks import joined
    from learner.run import run_follower, run_learner

    require(settings, "model.path", "data.path")
    folder = RunFolder(settings.run.dir).create()
    with joined(settings.training.ranks) as ranks:
        configure_logs("learner" if ranks.leads else f"learner-rank-{ranks.rank}")
        if not ranks.leads:
            run_follower(
                folder,
                ranks,
                model=settings.model,
                training=settings.training,
                checkpoint=settings.checkpoint,
                lora=settings.lora,
            )
            return True
        with learner_lock(folder, settings.deadlines.startup_s):
            return run_learner(
                folder,
                ranks=ranks,
                redis_url=redis_url(settings),
                run=settings.run,
                model=settings.model,
                data=settings.data,
                sampling=settings.sampling,
                training=settings.training,
                lora=settings.lora,
                checkpoint=settings.checkpoint,
                health=settings.health,
                evaluation=settings.evaluation,
                weight_sync=settings.weight_sync,
                deadlines=settings.deadlines,
            )


def start_evaluator(settings: Settings) -> bool:
    """Evaluate the model, or go on with it, until every answer is judged; False when SIGTERM came first."""
    from learner.evaluation.run import run_evaluator

    configure_logs("evaluator")
    require(settings, "model.path", "evaluation.benchmarks")
    return run_evaluator(
        RunFolder(settings.run.dir).create(),
        redis_url=redis_url(settings),
        model=settings.model,
        data=settings.data,
        sampling=settings.sampling,
        evaluation=settings.evaluation,
        weight_sync=settings.weight_sync,
        deadlines=settings.deadlines,
    )


def start_generator(settings: Settings, generator_id: str) -> None:
    """Sample for the run until SIGTERM. It needs only the run's addresses, not its folder."""
    from generator.run import Peers, run_generator

    configure_logs(generator_id)
    peers = Peers(
        redis_url=redis_url(settings),
        services_url=services_url(settings),
        token=token_of(settings),
        lease_s=settings.redis.lease_s,
    )
    asyncio.run(
        run_generator(
            generator_id,
            peers=peers,
            config=settings.generator.model_copy(update={"max_model_len": longest_sequence(settings)}),
            deadlines=settings.deadlines,
            cache=RunFolder(settings.run.dir).mirror_of(generator_id),
        )
    )


def own_generator_id() -> str:
    """A name for a generator that was started by hand: this host and process."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40].strip("-") or "host"
    return f"generator-{host}-{os.getpid()}"
