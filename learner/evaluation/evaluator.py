"""The evaluator: stands in the learner's place, publishes the model as version 0, and asks instead of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from learner.config import EvaluationConfig
from learner.evaluation.benchmarks import Benchmark
from learner.evaluation.eval_tasks import BenchmarkRunner, EvalSampling, measurements_of
from learner.evaluation.generations import Generations
from learner.evaluation.results import summarise, write_results
from learner.grading.pool import GraderPool
from learner.monitoring.heartbeat import HeartbeatReporter
from learner.monitoring.records import TextOf
from learner.outcome import Outcome
from learner.publisher import Publisher, contents_of_folder
from learner.repair import StoreRepair
from learner.rollouts.collector import Collector, Interrupted
from services.run_folder import EvaluationFolder

GRADERS = 1
"""Grading keeps up with many generators; a second process would take a core from them."""


@dataclass(slots=True)
class Evaluator:
    """One evaluation of one model over its parts. Leaving the `with` block closes them."""

    folder: EvaluationFolder
    """Where answers and results go. An evaluation goes on from the answers that it holds."""
    model_folder: Path
    benchmarks: Sequence[Benchmark]
    config: EvaluationConfig
    sampling: EvalSampling
    publisher: Publisher
    collector: Collector
    reporter: HeartbeatReporter
    text_of: TextOf
    meta: Mapping[str, Any]
    """What answers must have in common to be counted together."""
    deadline_s: float
    """For the next rollout."""
    repair: StoreRepair | None = None
    """Looks after the published model, where it is kept."""
    strict_grading: bool = False
    """As in `GraderPool`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.publisher.close()
        self.collector.stop()

    def stop(self) -> None:
        """End the wait for rollouts; what has arrived is kept."""
        self.collector.interrupt()

    def run(self) -> Outcome:
        """Write generations.jsonl as answers come, and results.json at the end.

        ConfigError when the folder holds the answers of another model.
        """
        with self.reporter.during("publishing"):
            if self.repair is not None:
                self.publisher.call(self.repair.at_start).result()
            publication = self.publisher.submit(0, contents_of_folder(self.model_folder)).result()
        self.reporter.enter("evaluating")
        meta = {**self.meta, "digest": publication.manifest.digest}
        generations = Generations(self.folder, meta)
        measurements = measurements_of(self.benchmarks, self.config.temperatures)
        self.collector.start()
        try:
            with GraderPool(GRADERS, strict=self.strict_grading) as pool:
                runner = BenchmarkRunner(self.collector, pool, generations, self.text_of, self.sampling)
                runner.run(measurements, version=0, digest=publication.manifest.digest, deadline_s=self.deadline_s)
        except Interrupted:
            return Outcome.INTERRUPTED
        asked = {(one.benchmark.name, one.temperature) for one in measurements}
        graded = (one for one in generations.read() if (one.benchmark, one.temperature) in asked)
        write_results(self.folder.results, summarise(graded, self.config.samples), meta)
        return Outcome.FINISHED
