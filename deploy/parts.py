"""How each part is started from the settings. Each function imports its part's heavy libraries itself.

Each function blocks until its part has finished or has drained. It raises SeptError for what a person can fix.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deploy import endpoints
from deploy.locks import learner_lock
from deploy.same_code import own_release
from deploy.settings import (
    Settings,
    digests_for_ranks,
    redis_url,
    require,
    services_url,
    token_of,
)
from learner.outcome import Outcome
from learner.parallel import launch_env
from services.logs import configure_logs
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect

if TYPE_CHECKING:
    from learner.parallel.ranks import Ranks


def start_services(settings: Settings) -> None:
    """Serve weight sync, status, metrics and control until SIGTERM."""
    from services.server import serve

    configure_logs("services")
    serve(
        folder=RunFolder(settings.run.dir).create(),
        redis_url=redis_url(settings),
        services=settings.services,
        deadlines=settings.deadlines,
    )


def start_learner(settings: Settings) -> Outcome:
    """Train until the last round or a signal. Resumes from the run folder. One of several ranks does its part."""
    for name, value in launch_env.ON_CUDA.items():
        os.environ.setdefault(name, value)
    from learner.run import run_follower, run_learner

    require(settings, "model.path", "data.path")
    folder = RunFolder(settings.run.dir).create()
    with _joined_ranks(settings, Keys(folder.run_id)) as ranks:
        configure_logs("learner" if ranks.is_leader else f"learner-rank-{ranks.rank}")
        if not ranks.is_leader:
            run_follower(folder, settings, ranks)
            return Outcome.FINISHED
        with learner_lock(folder, settings.deadlines.startup_s):
            return run_learner(folder, settings, redis_url=redis_url(settings), ranks=ranks)


@contextlib.contextmanager
def _joined_ranks(settings: Settings, keys: Keys) -> Iterator[Ranks]:
    """This process among the learner's ranks."""
    from learner.parallel.ranks import Ranks, join_ranks, own_rank
    from learner.parallel.rendezvous import RankCard, Rendezvous

    training, deadline_s = settings.training, settings.deadlines.startup_s
    if training.ranks == 1:
        yield Ranks()
        return
    rank, nonce = own_rank(training.ranks)
    card = RankCard(
        rank=rank,
        size=training.ranks,
        release=own_release(),
        settings=digests_for_ranks(settings),
        process=f"{socket.gethostname()}, process {os.getpid()}",
    )
    within_node = training.sharding == "node"
    with connect(redis_url(settings), deadline_s=deadline_s) as client:
        rendezvous = Rendezvous(client, keys.ranks, nonce, deadline_s)
        with join_ranks(rendezvous, card, nodes=training.nodes, shard_within_node=within_node) as ranks:
            yield ranks


def start_evaluator(settings: Settings) -> Outcome:
    """Evaluate the model, or go on with it, until every answer is graded or a signal comes."""
    from learner.run import run_evaluator

    configure_logs("evaluator")
    require(settings, "model.path", "evaluation.benchmarks")
    return run_evaluator(RunFolder(settings.run.dir).create(), settings, redis_url=redis_url(settings))


def start_generator(settings: Settings, generator_id: str) -> None:
    """Sample for the run until SIGTERM. It needs only the run's addresses, not its folder."""
    from generator.run import Peers, run_generator

    configure_logs(generator_id)
    folder, url = RunFolder(settings.run.dir), services_url(settings)
    found = endpoints.read(folder)
    peers = Peers(
        redis_url=redis_url(settings),
        services_url=url,
        token=token_of(settings),
        lease_s=settings.redis.lease_s,
        # an address of the folder may be that of another program by now
        identity=folder.run_identity if found is not None and found.services_url == url else None,
        tls_cert=settings.services.tls_cert,
    )
    asyncio.run(
        run_generator(
            generator_id,
            peers=peers,
            config=settings.generator,
            max_model_len=settings.longest_sequence,
            deadlines=settings.deadlines,
            cache=folder.mirror_of(generator_id),
        )
    )


def own_generator_id() -> str:
    """A name for a generator that was started by hand: this host and process.

    The end is random, as several hosts may have one name, and containers number their processes alike.
    """
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40].strip("-") or "host"
    return f"generator-{host}-{os.getpid()}-{secrets.token_hex(4)}"
