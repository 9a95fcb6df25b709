"""Wires the learner's parts together and runs its loop until the last round or SIGTERM."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog
from transformers import AutoTokenizer

from learner.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    HealthConfig,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    TrainingConfig,
)
from learner.data.curriculum import Curriculum
from learner.data.prompts import Prompt, load_prompts
from learner.evaluation.benchmarks import load_benchmarks
from learner.evaluation.during import Evaluations
from learner.evaluation.eval_tasks import describe_asking, drawing
from learner.grading.rewards import Rewards, check_answers
from learner.loop import Loop
from learner.model import hf_checkpoint
from learner.model.trained_model import TrainedModel, load_model
from learner.monitoring.collapse import Guard
from learner.monitoring.heartbeat import LEARNER_ID, Report
from learner.monitoring.records import Records
from learner.monitoring.trackers import open_trackers
from learner.parallel.ranks import Ranks
from learner.training.checkpoint import Checkpoints
from learner.training.follower import follow
from learner.training.trainer import Trainer
from learner.wiring import new_collector, new_publisher, stop_on_signals
from services.config import DeadlinesConfig, HeartbeatConfig, RunConfig, WeightSyncConfig
from services.contracts import Purpose
from services.errors import ConfigError, SeptError, UnavailableError
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect
from services.streams.control import Control
from services.streams.events import EventLog
from services.streams.heartbeats import Heartbeats

if TYPE_CHECKING:
    from learner.monitoring.traces import Traces

log = structlog.get_logger()

LAST_WORDS_S = 3.0
"""How long a learner that ends tries to tell Redis why."""


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
    evaluation: EvaluationConfig | None = None,
    health: HealthConfig | None = None,
    lora: LoraConfig | None = None,
    ranks: Ranks | None = None,
) -> bool:
    """Train the run in `folder`, from its newest checkpoint if it has one; False when a signal ended it too early.

    How it ended is in its last heartbeat and event. With several `ranks` this is what rank 0 does.
    """
    keys = Keys(folder.run_id)
    with connect(redis_url, deadline_s=deadlines.startup_s) as client:
        report = Report(Heartbeats(client, keys), device=training.device, every_s=heartbeat.every_s)
        with _told(report, redis_url, keys):
            records = Records(folder, open_trackers(run.trackers, folder))
            traces = _traces(folder.run_id)
            trained, trainer, checkpoints = _prepared(folder, ranks or Ranks(), model, training, lora, checkpoint)
            report.device = str(trained.device)
            tokenizer = AutoTokenizer.from_pretrained(trained.folder)
            prompts = load_prompts(data, tokenizer)
            curriculum = Curriculum(
                prompts,
                seed=run.seed,
                training=training,
                sampling=sampling,
                stop_token_ids=hf_checkpoint.stop_token_ids(trained.folder),
            )
            folder.note_rounds_total(curriculum.rounds_total)
            resumed = checkpoints.load()
            first_round = resumed.weight_version if resumed and training.data == "online" else 0
            collector = new_collector(client, keys, first_round, Purpose.TRAINING)
            publisher = new_publisher(folder, training.max_staleness, client, keys)
            loop = Loop(
                training=training,
                checkpoint=checkpoint,
                deadlines=deadlines,
                model=trained,
                trainer=trainer,
                text_of=lambda tokens: str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True)),
                curriculum=curriculum,
                collector=collector,
                publisher=publisher,
                checkpoints=checkpoints,
                records=records,
                control=Control(client, keys),
                events=EventLog(client, keys),
                report=report,
                rewards=_rewards(training, prompts),
                canary_prompts=weight_sync.canary_prompts,
                traces=traces,
            )
            if health is not None and health.action != "off":
                loop.guard = watch_health(folder, loop.events, loop.control, health)
            if evaluation is not None and evaluation.every_rounds:
                loop.evaluations = Evaluations(
                    folder.evaluations,
                    evaluation,
                    benchmarks=load_benchmarks(evaluation.benchmarks, data, tokenizer, limit=evaluation.limit),
                    drawing=drawing(evaluation, sampling, trained.folder),
                    text_of=loop.text_of,
                    new_collector=partial(new_collector, client, keys, purpose=Purpose.EVALUATION),
                    deadline_s=deadlines.rollouts_s,
                    meta={"model": model.path} | describe_asking(data, sampling),
                    last_version=curriculum.rounds_total,
                )
            stop_on_signals(loop.stop)
            collector.start()
            try:
                finished = loop.run(resumed)
            finally:
                publisher.close()
                collector.stop()
                records.close()
                if traces is not None:
                    traces.close()
                if loop.rewards is not None:
                    loop.rewards.close()
                if loop.evaluations is not None:
                    loop.evaluations.close()
            report.outcome = "finished" if finished else "stopped"
            return finished or not loop.stopped


def run_follower(
    folder: RunFolder,
    ranks: Ranks,
    *,
    model: ModelConfig,
    training: TrainingConfig,
    checkpoint: CheckpointConfig,
    lora: LoraConfig,
) -> None:
    """What the ranks other than 0 do: train what rank 0 shares with them, until it is done."""
    follow(*_prepared(folder, ranks, model, training, lora, checkpoint))


def _prepared(
    folder: RunFolder,
    ranks: Ranks,
    model: ModelConfig,
    training: TrainingConfig,
    lora: LoraConfig | None,
    checkpoint: CheckpointConfig,
) -> tuple[TrainedModel, Trainer, Checkpoints]:
    """What every rank has. On a GPU checkpoints are written beside the training; on a CPU that only takes memory."""
    trained = load_model(
        model.path,
        device=training.device,
        wire_dtype=model.wire_dtype,
        gradient_checkpointing=training.gradient_checkpointing,
        adapters=lora,
        ranks=ranks,
    )
    beside = trained.device.type == "cuda"
    checkpoints = Checkpoints(folder.checkpoints, folder.run_id, keep=checkpoint.keep, ranks=ranks, beside=beside)
    return trained, Trainer(trained, training), checkpoints


@contextlib.contextmanager
def _told(report: Report, redis_url: str, keys: Keys) -> Iterator[None]:
    """Report from the first moment on; at the end say in the last heartbeat and an event how it came to that."""
    report.start()
    message = ""
    try:
        yield
    except BaseException as error:
        message = error.message if isinstance(error, SeptError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        report.stop(message)
        # a client of its own: that of the run is as patient as a run has to be
        with contextlib.suppress(UnavailableError), connect(redis_url, deadline_s=LAST_WORDS_S) as client:
            EventLog(client, keys).append(LEARNER_ID, report.outcome, message=message)


def _traces(run_id: str) -> Traces | None:
    """What tells a collector of every task's life, where the environment names one."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return None
    try:
        from learner.monitoring.traces import Traces
    except ImportError as error:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, and OpenTelemetry cannot be imported: {error}",
            hint="pip install 'sept[traces]', or unset it",
        ) from error
    return Traces(run_id)


def _rewards(training: TrainingConfig, prompts: Sequence[Prompt]) -> Rewards | None:
    """What grades the rollouts, for the objective that asks for it."""
    if training.objective != "grpo":
        return None
    check_answers(prompts)
    return Rewards()


def watch_health(folder: RunFolder, events: EventLog, control: Control, health: HealthConfig) -> Guard:
    """A guard that does what `health.action` says about a collapse, over the same wishes as a person."""

    def alarm(signs: list[str]) -> None:
        back_to = guard.healthy(folder.checkpointed()) if health.action == "rollback" else None
        tell_collapse(events, control, signs, pause=health.action != "warn", back_to=back_to)

    guard = Guard(folder.rounds(), alarm)
    return guard


def tell_collapse(events: EventLog, control: Control, signs: list[str], *, pause: bool, back_to: int | None) -> None:
    """A model that collapses is said to; where that is wanted it goes back to a version, and the run pauses.

    It pauses after going back, too: what made the model collapse is still there, and a person should look first.
    """
    log.warning("collapse", signs="; ".join(signs), paused=pause, rollback_to=back_to)
    events.append(LEARNER_ID, "collapse", signs="; ".join(signs), paused=pause, rollback_to=back_to)
    if pause:
        control.set_paused(True)
    if back_to is not None:
        control.ask_rollback(back_to)
