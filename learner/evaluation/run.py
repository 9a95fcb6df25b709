"""The evaluator: stands in the learner's place, publishes the model as version 0, and asks instead of training."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from learner.config import DataConfig, EvaluationConfig, ModelConfig, SamplingConfig
from learner.evaluation.benchmarks import load_benchmarks
from learner.evaluation.eval_tasks import Examiner, describe_asking, drawing, exams_of
from learner.evaluation.generations import Generations
from learner.evaluation.results import RESULTS, summarise, write_results
from learner.grading.pool import GraderPool
from learner.model import hf_checkpoint
from learner.monitoring.heartbeat import Report
from learner.rollouts.collector import Interrupted
from learner.wiring import new_collector, new_publisher, stop_on_signals
from services.config import DeadlinesConfig, HeartbeatConfig
from services.contracts import Purpose
from services.errors import ModelError
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect
from services.streams.heartbeats import Heartbeats
from services.weights.tensors import RawTensor, read_safetensors

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
    deadlines: DeadlinesConfig,
    heartbeat: HeartbeatConfig,
) -> bool:
    """Evaluate the model; False when stopped before the end. Goes on from the answers that the folder holds.

    Writes generations.jsonl as answers come, and results.json at the end. ConfigError when the folder holds the
    answers of another model.
    """
    model_folder = hf_checkpoint.resolve_folder(model.path)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    benchmarks = load_benchmarks(evaluation.benchmarks, data, tokenizer, limit=evaluation.limit)
    keys = Keys(folder.run_id)
    with connect(redis_url, deadline_s=deadlines.startup_s) as client:
        report = Report(Heartbeats(client, keys), device="cpu", every_s=heartbeat.every_s)
        report.start()
        publisher = new_publisher(folder, 0, client, keys)
        collector = new_collector(client, keys, 0, Purpose.EVALUATION)
        stop_on_signals(collector.interrupt)
        try:
            with report.during("publishing"):
                files = hf_checkpoint.model_files(model_folder)
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
