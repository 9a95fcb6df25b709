"""Evaluates versions of a run while it trains, through the run's own generators.

All tokens of an evaluation are of the version that is evaluated: its tasks are issued once that version is published,
and the loop publishes no later one before their rollouts are in. Answers and results lie in the run's folder, under
evaluations/v000012; answers that are there after an interruption are not sampled again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import structlog

from learner.config import EvaluationConfig
from learner.evaluation.benchmarks import Benchmark
from learner.evaluation.eval_tasks import BenchmarkRunner, EvalSampling, measurements_of
from learner.evaluation.generations import Generations, is_described_by
from learner.evaluation.results import summarise, write_results
from learner.grading.pool import GraderPool
from learner.monitoring.records import TextOf
from learner.publisher import Publication
from learner.rollouts.collector import Collector, Interrupted
from services.contracts import EvaluationMetrics
from services.durable import UNGUARDED, WriteGuard
from services.run_folder import RunFolder

log = structlog.get_logger()

Evaluated = tuple[EvaluationMetrics, ...]


class Evaluations:
    """One version at a time, on a thread of its own.

    if evaluations.is_due(12):
        future = evaluations.start(12, publication)
    ...
    future.result()             before version 13 is published
    """

    def __init__(
        self,
        folder: RunFolder,
        config: EvaluationConfig,
        *,
        benchmarks: Sequence[Benchmark],
        sampling: EvalSampling,
        text_of: TextOf,
        new_collector: Callable[[int], Collector],
        deadline_s: float,
        meta: Mapping[str, Any],
        last_version: int,
        guard: WriteGuard = UNGUARDED,
        strict_grading: bool = False,
    ) -> None:
        """`new_collector` makes one for evaluation, from a first round on; `meta` says how answers are asked for;
        `strict_grading` as in `GraderPool`."""
        self._folder = folder
        self._config = config
        self._measurements = measurements_of(benchmarks, config.temperatures)
        self._sampling = sampling
        self._text_of = text_of
        self._new_collector = new_collector
        self._deadline_s = deadline_s
        self._meta = meta
        self._last_version = last_version
        self._guard = guard
        self._strict_grading = strict_grading
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evaluation")
        self._pool: GraderPool | None = None
        self._collector: Collector | None = None
        self._interrupted = False

    def is_due(self, version: int) -> bool:
        """Version 0, every so many, and the last; the last alone where `every_rounds` is more than the run has."""
        every = self._config.every_rounds
        return version == self._last_version or (every <= self._last_version and version % every == 0)

    def is_done(self, version: int, digest: str) -> bool:
        """Whether the folder has its results: of these weights, from the same problems asked in the same way."""
        folder = self._folder.evaluation_of(version)
        return folder.results.exists() and is_described_by(folder, {**self._meta, "digest": digest})

    def start(self, version: int, publication: Future[Publication]) -> Future[Evaluated]:
        """Evaluate the version as soon as it is published; the future raises what kept it from that."""
        return self._thread.submit(self._evaluate, version, publication)

    def interrupt(self) -> None:
        """End the running evaluation, and every later one, with Interrupted; safe to call from a signal handler."""
        self._interrupted = True
        if self._collector is not None:
            self._collector.interrupt()

    def close(self) -> None:
        """End what is running."""
        self.interrupt()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._pool is not None:
            self._pool.close()

    def _evaluate(self, version: int, publication: Future[Publication]) -> Evaluated:
        digest = publication.result().manifest.digest
        folder = self._folder.evaluation_of(version)
        meta = {"weight_version": version, "digest": digest, **self._meta}
        # A version that was trained again with other bytes is another one: its earlier answers go.
        generations = Generations(folder, meta, replace=True, guard=self._guard)
        folder.results.unlink(missing_ok=True)
        self._collector = self._new_collector(version)
        self._collector.start()
        try:
            if self._interrupted:
                raise Interrupted
            if self._pool is None:
                self._pool = GraderPool(1, strict=self._strict_grading).__enter__()
            runner = BenchmarkRunner(self._collector, self._pool, generations, self._text_of, self._sampling)
            runner.run(self._measurements, version=version, digest=digest, deadline_s=self._deadline_s)
        finally:
            self._collector.stop()
            self._collector = None
        results = summarise(generations.read(), self._config.samples)
        with self._guard.guard():
            write_results(folder.results, results, meta)
        metrics = results.metrics(version)
        for found in metrics:
            log.info("evaluated", weight_version=version, temperature=found.temperature, **_first_k(found))
        return metrics


def _first_k(metrics: EvaluationMetrics) -> dict[str, float]:
    return {f"{name}_pass_at_1": round(by_k[1], 4) for name, by_k in metrics.pass_at_k.items()}
