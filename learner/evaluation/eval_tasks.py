"""Samples and grades the answers of an evaluation: tasks out, rollouts in, grades written as they come.

The tasks go through the same queue and generators as training, under a purpose of their own, so the two never mix. All
tokens of an evaluation are of one weight version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from learner.config import DataConfig, EvaluationConfig, SamplingConfig
from learner.data.prompts import Prompt
from learner.evaluation.benchmarks import Benchmark
from learner.evaluation.generations import BENCHMARKS, Generation, Generations
from learner.evaluation.grader_version import grader_version
from learner.grading.pool import GraderPool
from learner.monitoring.records import TextOf
from learner.rollouts.collector import Collector
from services.contracts import Purpose, Rollout, Task

log = structlog.get_logger()

SAMPLES_PER_TASK = 8
"""Answers that one generator draws for one lease: fewer leases, still spread over the generators."""
GRADE_BATCH = 128
"""Most answers that are graded and written together; fewer when the next is not there yet."""


@dataclass(frozen=True, slots=True)
class EvalSampling:
    """How answers are sampled."""

    samples: int
    """n, per problem."""
    max_response_tokens: int
    top_p: float
    stop_token_ids: tuple[int, ...]
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One benchmark at one temperature."""

    benchmark: Benchmark
    temperature: float

    def tasks(self, batch: int, version: int, digest: str, sampling: EvalSampling) -> list[Task]:
        """Its tasks for a weight version, every problem's first answers before the second ones.

        `batch` numbers the measurements of an evaluation from the version up; it is the `round` of their tasks.
        `digest` is part of the tasks' names: the same version number with other weights has other tasks.
        """
        prompts, step = self.benchmark.prompts, SAMPLES_PER_TASK
        return [
            Task(
                task_id=f"e{version}-{digest[:8]}-{self.benchmark.name}-t{self.temperature:g}-{first}.{number}",
                round=batch,
                position=first // step * len(prompts) + number,
                prompt_tokens=prompt.tokens,
                temperature=self.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                max_response_tokens=sampling.max_response_tokens,
                stop_token_ids=sampling.stop_token_ids,
                samples=min(step, sampling.samples - first),
                min_weight_version=version,
                max_weight_version=version,
                purpose=Purpose.EVALUATION,
            )
            for first in range(0, sampling.samples, step)
            for number, prompt in enumerate(prompts)
        ]

    def problem_of(self, position: int) -> tuple[Prompt, int]:
        """The problem of the task at that position, and the number of the task's first answer among the n."""
        chunk, number = divmod(position, len(self.benchmark.prompts))
        return self.benchmark.prompts[number], chunk * SAMPLES_PER_TASK


class BenchmarkRunner:
    """Runs the measurements of one weight version. The collector is started, and for evaluation only.

    BenchmarkRunner(collector, pool, generations, text_of, sampling).run(measurements, version=12, digest=..., ...)
    """

    def __init__(
        self,
        collector: Collector,
        pool: GraderPool,
        generations: Generations,
        text_of: TextOf,
        sampling: EvalSampling,
    ) -> None:
        self._collector = collector
        self._pool = pool
        self._generations = generations
        self._text_of = text_of
        self._sampling = sampling

    def run(self, measurements: Sequence[Measurement], *, version: int, digest: str, deadline_s: float) -> None:
        """Sample and grade every answer that is not there yet.

        Raises DeadlineError when nothing arrives for `deadline_s`, Interrupted once the collector is.
        """
        missing = [self._missing(one, version + number, version, digest) for number, one in enumerate(measurements)]
        for number, measurement in enumerate(measurements):
            # The next measurement is issued with this one, so that no generator idles while the last answers come in.
            for tasks in missing[number : number + 2]:
                self._collector.expect(tasks)
            if missing[number]:
                self._collect(measurement, version + number, deadline_s)
                log.info("measured", benchmark=measurement.benchmark.name, temperature=measurement.temperature)
            self._collector.release(before_round=version + number + 1)

    def _missing(self, measurement: Measurement, batch: int, version: int, digest: str) -> list[Task]:
        """The tasks that an answer is missing of."""
        name, temperature = measurement.benchmark.name, measurement.temperature

        def is_missing(task: Task) -> bool:
            problem, first = measurement.problem_of(task.position)
            samples = range(first, first + task.samples)
            return any((name, temperature, problem.row, sample) not in self._generations.known for sample in samples)

        return [task for task in measurement.tasks(batch, version, digest, self._sampling) if is_missing(task)]

    def _collect(self, measurement: Measurement, batch: int, deadline_s: float) -> None:
        pending: list[Rollout] = []

        def grade_pending() -> None:
            self._grade(measurement, pending)
            pending.clear()

        @contextmanager
        def waiting() -> Iterator[None]:
            grade_pending()  # there is time for it, and an interruption then finds it done
            yield

        for rollout in self._collector.in_order(batch, deadline_s, waiting):
            pending.append(rollout)
            if len(pending) == GRADE_BATCH:
                grade_pending()
        grade_pending()

    def _grade(self, measurement: Measurement, rollouts: Sequence[Rollout]) -> None:
        """Grade these answers and keep them."""
        texts = [self._text_of(rollout.response_tokens) for rollout in rollouts]
        asked = [measurement.problem_of(rollout.position) for rollout in rollouts]
        pairs = [(text, problem.answer or "") for text, (problem, _) in zip(texts, asked, strict=True)]
        grades = self._pool.grade_many(pairs)
        self._generations.add(
            [
                Generation(
                    benchmark=measurement.benchmark.name,
                    temperature=measurement.temperature,
                    problem=problem.row,
                    sample=first + rollout.sample,
                    outcome=grade.outcome,
                    question=problem.question,
                    truth=problem.answer or "",
                    answer=grade.answer,
                    response=text,
                    finish_reason=rollout.finish_reason,
                    response_tokens=int(rollout.response_tokens.size),
                    weight_version=rollout.spans[0].weight_version,
                    generator_id=rollout.generator_id,
                )
                for rollout, text, (problem, first), grade in zip(rollouts, texts, asked, grades, strict=True)
            ]
        )


def sampling_of(
    evaluation: EvaluationConfig, sampling: SamplingConfig, stop_token_ids: tuple[int, ...]
) -> EvalSampling:
    """As [evaluation] and [sampling] say, ending at the model's stop tokens."""
    return EvalSampling(
        evaluation.samples,
        sampling.max_response_tokens,
        sampling.top_p,
        stop_token_ids,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
    )


def describe_settings(data: DataConfig, sampling: SamplingConfig | EvalSampling) -> dict[str, Any]:
    """How the settings ask."""
    truncation = {"top_k": sampling.top_k, "min_p": sampling.min_p}
    return {
        "system_prompt": data.system_prompt,
        "question_suffix": data.question_suffix,
        "chat_template": data.chat_template,
        "top_p": sampling.top_p,
        "max_response_tokens": sampling.max_response_tokens,
        **{name: value for name, value in truncation.items() if value},  # earlier answers were sampled without
    }


def describe_asking(data: DataConfig, sampling: EvalSampling, benchmarks: Sequence[Benchmark]) -> dict[str, Any]:
    """What answers must have in common to be counted together. The number of answers may differ."""
    return {
        **describe_settings(data, sampling),
        "stop_token_ids": list(sampling.stop_token_ids),
        "grader": grader_version(),
        BENCHMARKS: {benchmark.name: benchmark.digests for benchmark in benchmarks},
    }


def measurements_of(benchmarks: Sequence[Benchmark], temperatures: Sequence[float]) -> list[Measurement]:
    """Every benchmark at every temperature, one temperature after the other."""
    return [Measurement(benchmark, temperature) for temperature in temperatures for benchmark in benchmarks]
