"""Puts a learner or an evaluator together: from settings and addresses to what is ready to run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import redis
import structlog
import torch
from numpy.typing import NDArray

from learner.config import ANY_VOTE_SHARE, LearnerSettings, Recomputation
from learner.data.curriculum import Curriculum
from learner.data.dataset import read_questions
from learner.data.prompts import load_prompts, template_of
from learner.data.repeats import BenchmarkQuestions, without_repeats
from learner.data.stop_tokens import stop_token_ids
from learner.evaluation.benchmarks import Benchmark, load_benchmarks, resolve_benchmarks
from learner.evaluation.during import Evaluations
from learner.evaluation.eval_tasks import EvalSampling, describe_asking, sampling_of
from learner.evaluation.evaluator import Evaluator
from learner.grading.signals import SignalWorker, with_references
from learner.loop import Loop
from learner.memory.fitting import MODES, check_fits, recomputation_of
from learner.memory.model_shape import read_shape
from learner.model import hf_checkpoint
from learner.model.model_loading import load_model, resolve_device
from learner.model_folder.tokenizer import load_tokenizer
from learner.monitoring.collapse import CollapseMonitor
from learner.monitoring.decline import DeclineMonitor
from learner.monitoring.heartbeat import LEARNER_ID, HeartbeatReporter
from learner.monitoring.records import Records, TextOf
from learner.monitoring.token_record import PiecesOf
from learner.monitoring.trackers import open_trackers
from learner.parallel.ranks import Ranks
from learner.publisher import Publisher, VersionContents, contents_of_folder, contents_of_model
from learner.recipes import RECIPES
from learner.repair import StoreRepair
from learner.rollouts.answer_check import AnswerCheck, fault_of_version
from learner.rollouts.collector import Collector
from learner.rollouts.rollout_source import FixedSource, OnlineSource, RolloutSource
from learner.training.checkpoint import Checkpoints
from learner.training.peak_memory import cap_memory, room_on
from learner.training.trainer import Trainer
from services.contracts import Purpose
from services.errors import ConfigError
from services.run_folder import EvaluationFolder, RunFolder
from services.streams.connection import Keys
from services.streams.control import Control
from services.streams.dead_letters import read_dead_letters
from services.streams.events import EventLog
from services.streams.fence import UNFENCED, Fence
from services.streams.rollouts import RolloutReader
from services.streams.tasks import TaskIssuer
from services.streams.wire import claimed_task_id
from services.weights.export import keep_best
from services.weights.publisher import KEEP_VERSIONS, WeightPublisher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from learner.monitoring.traces import Traces


log = structlog.get_logger()


def build_learner(
    folder: RunFolder,
    settings: LearnerSettings,
    client: redis.Redis,
    reporter: HeartbeatReporter,
    ranks: Ranks | None = None,
    *,
    fence: Fence = UNFENCED,
    text_of: TextOf | None = None,
    async_checkpoints: bool | None = None,
) -> Loop:
    """Rank 0's loop over the run in `folder`, which goes on from its newest checkpoint if it has one.

    `text_of`: default: the model's tokenizer. `async_checkpoints`: default: on a GPU, since it takes host memory.
    """
    keys = Keys(folder.run_id)
    records = Records(folder, open_trackers(settings.run.trackers, folder), fence=fence)
    traces = open_traces(folder.run_id)
    trainer, checkpoints = build_training(folder, settings, ranks, fence=fence, async_checkpoints=async_checkpoints)
    model = trainer.model
    reporter.update(device=str(model.device))
    tokenizer = load_tokenizer(model.folder)
    template = template_of(settings.data, tokenizer)
    stop_tokens = stop_token_ids(model.folder, tokenizer, template, settings.sampling.stop_tokens)
    prompts = with_references(trainer.algorithm, load_prompts(settings.data, tokenizer))
    prompts = without_repeats(prompts, _benchmark_questions(settings), settings.data.repeats)
    curriculum = Curriculum(
        prompts,
        seed=settings.run.seed,
        training=settings.training,
        sampling=settings.sampling,
        stop_token_ids=stop_tokens,
        vote_shares=settings.data.vote_share,
    )
    folder.note_rounds_total(curriculum.rounds_total)
    resumed = checkpoints.load()
    first_round = resumed.weight_version if resumed and settings.training.data == "online" else 0
    store = open_store(folder, settings.training.max_staleness, fence)
    events = EventLog(client, keys, fence)
    check = AnswerCheck(model.module.config.get_text_config().vocab_size, partial(fault_of_version, store))
    new_collector = partial(build_collector, client, keys, fence, check)
    collector = new_collector(first_round, Purpose.TRAINING)
    signals, strict = trainer.algorithm.signals, RECIPES[settings.training.recipe].strict_grading
    health, evaluation = settings.health, settings.evaluation
    watched = health.action != "off" or settings.data.vote_share != ANY_VOTE_SHARE
    compares = signals is not None or (settings.sampling.rollouts_per_prompt > 1 and watched)
    as_text = text_of or _decoder(tokenizer)
    evaluations = None
    if evaluation.every_rounds:
        benchmarks = load_benchmarks(evaluation.benchmarks, settings.data, tokenizer, limit=evaluation.limit)
        sampling = sampling_of(evaluation, settings.sampling, stop_tokens)
        evaluations = Evaluations(
            folder,
            evaluation,
            benchmarks=benchmarks,
            sampling=sampling,
            text_of=as_text,
            new_collector=partial(new_collector, purpose=Purpose.EVALUATION),
            deadline_s=settings.deadlines.rollouts_s,
            meta=_describe(settings, sampling, benchmarks),
            last_version=curriculum.rounds_total,
            guard=fence,
            strict_grading=strict,
        )
    return Loop(
        curriculum=curriculum,
        collector=collector,
        source=_source(settings, curriculum, collector, reporter),
        trainer=trainer,
        publisher=Publisher(store, events, reporter.slowest_line),
        checkpoints=checkpoints,
        records=records,
        control=Control(client, keys, fence),
        events=events,
        reporter=reporter,
        text_of=as_text,
        pieces_of=_pieces_decoder(tokenizer),
        resumed=resumed,
        checkpoint_every=settings.checkpoint.every_rounds,
        checkpoint_every_s=60.0 * settings.checkpoint.every_minutes,
        canary_prompts=settings.weight_sync.canary_prompts,
        follow_deadline_s=settings.deadlines.weights_s,
        signals=SignalWorker(signals, strict=strict) if compares else None,
        monitor=None if health.action == "off" else CollapseMonitor(folder.rounds()),
        decline=None if health.action == "off" or evaluations is None else DeclineMonitor(folder.rounds()),
        on_collapse="warn" if health.action == "off" else health.action,
        keep_best=partial(keep_best, folder) if health.action == "stop" else None,
        evaluations=evaluations,
        repair=StoreRepair(store, partial(make_base, settings), events),
        traces=traces,
    )


def build_evaluator(
    folder: RunFolder,
    settings: LearnerSettings,
    client: redis.Redis,
    reporter: HeartbeatReporter,
    *,
    fence: Fence = UNFENCED,
) -> Evaluator:
    """The evaluator of the model at model.path on the benchmarks of the settings."""
    keys = Keys(folder.run_id)
    model_folder = hf_checkpoint.resolve_folder(settings.model.path)
    tokenizer = load_tokenizer(model_folder)
    evaluation = settings.evaluation
    template = template_of(settings.data, tokenizer)
    stop_tokens = stop_token_ids(model_folder, tokenizer, template, settings.sampling.stop_tokens)
    sampling = sampling_of(evaluation, settings.sampling, stop_tokens)
    benchmarks = load_benchmarks(evaluation.benchmarks, settings.data, tokenizer, limit=evaluation.limit)
    store, events = open_store(folder, 0, fence), EventLog(client, keys, fence)
    check = AnswerCheck(hf_checkpoint.vocabulary_of(model_folder), partial(fault_of_version, store))
    return Evaluator(
        folder=EvaluationFolder(folder.path),
        model_folder=model_folder,
        benchmarks=benchmarks,
        config=evaluation,
        sampling=sampling,
        publisher=Publisher(store, events),
        repair=StoreRepair(store, partial(contents_of_folder, model_folder), events),
        collector=build_collector(client, keys, fence, check, 0, Purpose.EVALUATION),
        reporter=reporter,
        text_of=_decoder(tokenizer),
        meta=_describe(settings, sampling, benchmarks),
        strict_grading=RECIPES[settings.training.recipe].strict_grading,
        deadline_s=settings.deadlines.rollouts_s,
    )


def build_training(
    folder: RunFolder,
    settings: LearnerSettings,
    ranks: Ranks | None = None,
    *,
    fence: Fence = UNFENCED,
    async_checkpoints: bool | None = None,
) -> tuple[Trainer, Checkpoints]:
    """What every rank has: the trainer of its share of the model, and the checkpoints of the run."""
    ranks = ranks or Ranks()
    model_folder = hf_checkpoint.resolve_folder(settings.model.path)
    device = ranks.own_device(resolve_device(settings.training.device))
    cap_memory(device)
    model = load_model(
        str(model_folder),
        device=settings.training.device,
        wire_dtype=settings.model.wire_dtype,
        gradient_checkpointing=_recomputation(model_folder, settings, ranks, device),
        adapters=settings.lora,
        longest=settings.longest_sequence,
        ranks=ranks,
    )
    async_write = model.device.type == "cuda" if async_checkpoints is None else async_checkpoints
    checkpoints = Checkpoints(
        folder.checkpoints,
        folder.run_id,
        keep=settings.checkpoint.keep,
        ranks=ranks,
        async_write=async_write,
        fence=fence,
    )
    return Trainer(model, settings.training), checkpoints


def _recomputation(model_folder: Path, settings: LearnerSettings, ranks: Ranks, device: torch.device) -> Recomputation:
    """What this learner recomputes, the same on all ranks; ConfigError, before weights load, when it cannot fit."""
    chosen = settings.training.gradient_checkpointing
    shape = read_shape(model_folder)
    if shape is None:  # a family whose sizes are not known: nothing can be foretold
        return "off" if chosen == "auto" else chosen
    room = room_on(device)
    check_fits(shape, settings, room)
    mine = MODES.index(recomputation_of(shape, settings, room))
    agreed = MODES[int(ranks.broadcast(np.array([mine]) if ranks.is_leader else None)[0])]
    if ranks.is_leader and chosen == "auto":
        log.info("recomputation_chosen", gradient_checkpointing=agreed)
    return agreed


def make_base(settings: LearnerSettings) -> VersionContents:
    """Version 0: the model as it was before training, loaded once more into host memory."""
    model = load_model(settings.model.path, device="cpu", wire_dtype=settings.model.wire_dtype, adapters=settings.lora)
    return contents_of_model(model, 0, settings.weight_sync.canary_prompts)


def build_collector(
    client: redis.Redis, keys: Keys, fence: Fence, check: AnswerCheck, first_round: int, purpose: Purpose
) -> Collector:
    """A collector on the run's queues, not yet started; its errors quote why a task was given up."""
    events = EventLog(client, keys, fence)

    def report_refusal(generator_id: str, reason: str) -> None:
        events.append(LEARNER_ID, "generator_refused", generator_id=generator_id, reason=reason)

    return Collector(
        TaskIssuer(client, keys, fence),
        RolloutReader(client, keys, fence),
        first_round=first_round,
        purpose=purpose,
        check=check,
        reason_of=partial(why_given_up, client, keys),
        on_refusal=report_refusal,
    )


def open_store(folder: RunFolder, max_staleness: int, fence: Fence) -> WeightPublisher:
    """The run's versions; every one is kept that a task may still ask for."""
    keep_versions = max(KEEP_VERSIONS, max_staleness + 2)
    return WeightPublisher(folder.weights, folder.run_id, keep_versions=keep_versions, fence=fence)


def why_given_up(client: redis.Redis, keys: Keys, task_id: str) -> str:
    """The reason in the task's newest dead letter; empty when it has none."""
    letters = read_dead_letters(client, keys, count=1000)
    return next((letter.reason for letter in letters if claimed_task_id(letter.fields) == task_id), "")


def open_traces(run_id: str) -> Traces | None:
    """What sends every task's spans to a collector of traces, where the environment names one."""
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


def _benchmark_questions(settings: LearnerSettings) -> list[BenchmarkQuestions]:
    """Of the benchmarks that the settings name, where the run reads them anyway or must not train on them."""
    evaluation = settings.evaluation
    if not evaluation.benchmarks or (settings.data.repeats == "keep" and not evaluation.every_rounds):
        return []
    return [
        BenchmarkQuestions(name, [question.text for question in read_questions(path, split=split)])
        for name, path, split in resolve_benchmarks(evaluation.benchmarks)
    ]


def _describe(settings: LearnerSettings, sampling: EvalSampling, benchmarks: Sequence[Benchmark]) -> dict[str, Any]:
    """What an evaluation's answers must have in common to be counted together."""
    graded = {"grading": "strict"} if RECIPES[settings.training.recipe].strict_grading else {}
    return {"model": settings.model.path, **describe_asking(settings.data, sampling, benchmarks), **graded}


def _decoder(tokenizer: PreTrainedTokenizerBase) -> TextOf:
    return lambda tokens: str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True))


def _pieces_decoder(tokenizer: PreTrainedTokenizerBase) -> PiecesOf:
    """Half a microsecond a token; no pieces of a tokenizer that is written in Python."""
    if not tokenizer.is_fast:
        return lambda _: []
    from tokenizers.decoders import DecodeStream

    backend = tokenizer.backend_tokenizer

    def pieces_of(tokens: NDArray[np.int32]) -> list[str]:
        stream = DecodeStream(skip_special_tokens=True)
        return [stream.step(backend, token) or "" for token in tokens.tolist()]

    return pieces_of


def _source(
    settings: LearnerSettings, curriculum: Curriculum, collector: Collector, reporter: HeartbeatReporter
) -> RolloutSource:
    deadline_s, waiting = settings.deadlines.rollouts_s, partial(reporter.during, "waiting_for_rollouts")
    if settings.training.data == "fixed":
        return FixedSource(curriculum, collector, deadline_s=deadline_s, waiting=waiting)
    return OnlineSource(
        curriculum,
        collector,
        max_staleness=settings.training.max_staleness,
        deadline_s=deadline_s,
        waiting=waiting,
    )
