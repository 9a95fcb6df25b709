"""Wires the learner's parts together and runs its loop until the last round or SIGTERM."""

from __future__ import annotations

import signal
from types import FrameType

import structlog
from transformers import AutoTokenizer

from learner import modelfolder
from learner.checkpoint import Checkpoints
from learner.collector import Collector
from learner.config import CheckpointConfig, DataConfig, ModelConfig, SamplingConfig, TrainingConfig
from learner.curriculum import Curriculum
from learner.loop import Loop
from learner.model import load_model
from learner.prompts import load_prompts
from learner.publisher import Publisher
from learner.records import Records
from learner.report import Report
from learner.trainer import Trainer
from services.config import DeadlinesConfig, HeartbeatConfig, RunConfig, WeightSyncConfig
from services.runfolder import RunFolder
from services.streams.connection import Keys, connect
from services.streams.control import Control
from services.streams.events import EventLog
from services.streams.heartbeats import Heartbeats
from services.streams.rollouts import RolloutReader
from services.streams.tasks import TaskIssuer
from services.weights.store import WeightStore

log = structlog.get_logger()


def run_learner(
    folder: RunFolder,
    *,
    redis_url: str,
    run: RunConfig,
    model: ModelConfig,
    data: DataConfig,
    sampling: SamplingConfig,
    training: TrainingConfig,
    checkpoint: CheckpointConfig,
    weight_sync: WeightSyncConfig,
    deadlines: DeadlinesConfig,
    heartbeat: HeartbeatConfig,
) -> bool:
    """Train the run in `folder`, from its newest checkpoint if it has one; False when stopped before the last round."""
    redis = connect(redis_url, deadline_s=deadlines.startup_s)
    keys = Keys(folder.run_id)
    events = EventLog(redis, keys)
    trained = load_model(
        model.path,
        device=training.device,
        wire_dtype=model.wire_dtype,
        gradient_checkpointing=training.gradient_checkpointing,
    )
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    curriculum = Curriculum(
        load_prompts(data, tokenizer),
        seed=run.seed,
        training=training,
        sampling=sampling,
        stop_token_ids=modelfolder.stop_token_ids(trained.folder),
    )
    checkpoints = Checkpoints(folder.checkpoints, folder.run_id, keep=checkpoint.keep)
    resumed = checkpoints.load()
    collector = Collector(
        TaskIssuer(redis, keys),
        RolloutReader(redis, keys),
        first_round=resumed.weight_version if resumed else 0,
    )
    store = WeightStore(
        folder.weights, folder.run_id, anchor_every=weight_sync.anchor_every, keep_versions=weight_sync.keep_versions
    )
    report = Report(Heartbeats(redis, keys), device=str(trained.device), every_s=heartbeat.every_s)
    publisher = Publisher(store, events)
    loop = Loop(
        training=training,
        checkpoint=checkpoint,
        deadlines=deadlines,
        model=trained,
        trainer=Trainer(trained, training),
        text_of=lambda tokens: str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True)),
        curriculum=curriculum,
        collector=collector,
        publisher=publisher,
        checkpoints=checkpoints,
        records=Records(folder),
        control=Control(redis, keys),
        report=report,
    )
    _stop_on_signals(loop)
    report.start()
    collector.start()
    try:
        return loop.run(resumed)
    finally:
        publisher.close()
        collector.stop()
        report.stop()
        redis.close()


def _stop_on_signals(loop: Loop) -> None:
    """The first SIGTERM or SIGINT stops the loop at its next safe point, the second ends the process."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        log.info("stopping")
        loop.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
