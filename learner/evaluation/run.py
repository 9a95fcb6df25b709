"""The evaluator: stands in the learner's place, publishes the model as version 0, and asks instead of training."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import structlog
from transformers import AutoTokenizer

from learner import modelfolder
from learner.collector import Collector, Interrupted
from learner.config import DataConfig, EvaluationConfig, ModelConfig, SamplingConfig
from learner.evaluation.benchmarks import load_benchmarks
from learner.evaluation.exam import Examiner, describe_asking, drawing, exams_of
from learner.evaluation.generations import Generations
from learner.evaluation.pool import GraderPool
from learner.evaluation.results import RESULTS, summarise, write_results
from learner.publisher import Publisher
from learner.report import Report
from services.config import DeadlinesConfig, HeartbeatConfig, WeightSyncConfig
from services.contracts import Purpose
from services.errors import ModelError
from services.runfolder import RunFolder
from services.streams.connection import Keys, connect
from services.streams.events import EventLog
from services.streams.heartbeats import Heartbeats
from services.streams.rollouts import RolloutReader
from services.streams.tasks import TaskIssuer
from services.weights.store import WeightStore
from services.weights.tensors import RawTensor, read_safetensors

log = structlog.get_logger()

GRADERS = 1
"""Grading keeps up with many generators; a second process would take a core from them."""


def run_evaluator(
    folder: RunFolder,
    *,
    redis_url: str,
    model: ModelConfig,
    data: DataConfig,
    sampling: SamplingConfig,
    evaluation: EvaluationConfig,
    weight_sync: WeightSyncConfig,
    deadlines: DeadlinesConfig,
    heartbeat: HeartbeatConfig,
) -> bool:
    """Evaluate the model; False when stopped before the end. Goes on from the answers that the folder holds.

    Writes generations.jsonl as answers come, and results.json at the end. ConfigError when the folder holds the
    answers of another model.
    """
    model_folder = modelfolder.resolve_folder(model.path)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    benchmarks = load_benchmarks(evaluation.benchmarks, data, tokenizer, limit=evaluation.limit)
    keys = Keys(folder.run_id)
    with connect(redis_url, deadline_s=deadlines.startup_s) as client:
        report = Report(Heartbeats(client, keys), device="cpu", every_s=heartbeat.every_s)
        report.start()
        store = WeightStore(
            folder.weights,
            folder.run_id,
            anchor_every=weight_sync.anchor_every,
            keep_versions=weight_sync.keep_versions,
        )
        publisher = Publisher(store, EventLog(client, keys))
        collector = Collector(
            TaskIssuer(client, keys), RolloutReader(client, keys), first_round=0, purpose=Purpose.EVALUATION
        )
        _stop_on_signals(collector)
        try:
            with report.during("publishing"):
                files = modelfolder.model_files(model_folder)
                digest = publisher.submit(0, read_weights(model_folder), files).result().manifest.digest
            report.enter("evaluating")
            meta = {"model": model.path, "digest": digest} | describe_asking(data, sampling)
            generations = Generations(folder.path, meta)
            collector.start()
            with GraderPool(GRADERS) as pool:
                examiner = Examiner(
                    collector,
                    pool,
                    generations,
                    lambda tokens: str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True)),
                    drawing(evaluation, sampling, model_folder),
                )
                exams = exams_of(benchmarks, evaluation.temperatures)
                examiner.hold(exams, version=0, digest=digest, deadline_s=deadlines.rollouts_s)
            asked = {(exam.benchmark.name, exam.temperature) for exam in exams}
            judged = (one for one in generations.read() if (one.benchmark, one.temperature) in asked)
            write_results(folder.path / RESULTS, summarise(judged, evaluation.samples), meta)
            report.outcome = "finished"
        except Interrupted:
            report.outcome = "stopped"
        finally:
            publisher.close()
            collector.stop()
            report.stop()
    return report.outcome == "finished"


def read_weights(folder: Path) -> dict[str, RawTensor]:
    """Every tensor of the model's folder, as stored; ModelError when none is stored as safetensors."""
    tensors: dict[str, RawTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= read_safetensors(path)
    if not tensors:
        raise ModelError(f"{folder} has no safetensors files", hint="save the model with save_pretrained")
    return tensors


def _stop_on_signals(collector: Collector) -> None:
    """The first SIGTERM or SIGINT ends the waiting, the second the process."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        log.info("stopping")
        collector.interrupt()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
