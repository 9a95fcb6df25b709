"""Draws and judges the answers of an evaluation: tasks out, rollouts in, grades written as they come.

Goes through the same queue and generators as training, under a purpose of its own, so the two never mix; all tokens
of an evaluation are of one weight version. Knows neither how benchmarks are read nor what becomes of the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from learner.config import DataConfig, EvaluationConfig, SamplingConfig
from learner.data.prompts import Prompt
from learner.evaluation.benchmarks import Benchmark
from learner.evaluation.generations import Generation, Generations
from learner.grading.pool import GraderPool
from learner.model import hf_checkpoint
from learner.rollouts.collector import Collector
from services.contracts import Purpose, Rollout, Task

log = structlog.get_logger()

SAMPLES_PER_TASK = 8
"""Answers that one generator draws for one lease: fewer leases, still spread over the generators."""
GRADED_AT_ONCE = 128
"""Most answers that are judged and written together; fewer when the next is not there yet."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How answers are drawn."""

    samples: int
    """n, per problem."""
    max_response_tokens: int
    top_p: float
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Exam:
    """One benchmark at one temperature."""

    benchmark: Benchmark
    temperature: float

    def tasks(self, round_: int, version: int, digest: str, drawing: Drawing) -> list[Task]:
        """Its tasks for a weight version, every problem's first answers before the second ones.

        `round_` numbers the exams of an evaluation from the version up. `digest` is part of the tasks' names: the
        same version number with other weights has other tasks.
        """
        prompts, step = self.benchmark.prompts, SAMPLES_PER_TASK
        return [
            Task(
                task_id=f"e{version}-{digest[:8]}-{self.benchmark.name}-t{self.temperature:g}-{first}.{place}",
                round=round_,
                index=first // step * len(prompts) + place,
                prompt_tokens=prompt.tokens,
                temperature=self.temperature,
                top_p=drawing.top_p,
                max_response_tokens=drawing.max_response_tokens,
                stop_token_ids=drawing.stop_token_ids,
                samples=min(step, drawing.samples - first),
                min_weight_version=version,
                max_weight_version=version,
                purpose=Purpose.EVALUATION,
            )
            for first in range(0, drawing.samples, step)
            for place, prompt in enumerate(prompts)
        ]

    def place_of(self, rollout: Rollout) -> tuple[Prompt, int]:
        """The rollout's problem, and which of the problem's n answers it is."""
        chunk, place = divmod(rollout.index, len(self.benchmark.prompts))
        return self.benchmark.prompts[place], chunk * SAMPLES_PER_TASK + rollout.sample


class Examiner:
    """Holds the exams of one weight version. The collector is started, and for evaluation only.

    Examiner(collector, pool, generations, text_of, drawing).hold(exams, version=12, digest=..., deadline_s=1800)
    """

    def __init__(
        self,
        collector: Collector,
        pool: GraderPool,
        generations: Generations,
        text_of: Callable[[NDArray[np.int32]], str],
        drawing: Drawing,
    ) -> None:
        self._collector = collector
        self._pool = pool
        self._generations = generations
        self._text_of = text_of
        self._drawing = drawing

    def hold(self, exams: Sequence[Exam], *, version: int, digest: str, deadline_s: float) -> None:
        """Draw and judge every answer that is not there yet.

        Raises DeadlineError when nothing arrives for `deadline_s`, Interrupted once the collector is.
        """
        owed = [self._owed(exam, version + place, version, digest) for place, exam in enumerate(exams)]
        for place, exam in enumerate(exams):
            # The next exam is issued with this one, so that no generator idles while the last answers come in.
            for tasks in owed[place : place + 2]:
                self._collector.expect(tasks)
            if owed[place]:
                self._collect(exam, version + place, deadline_s)
                log.info("exam_finished", benchmark=exam.benchmark.name, temperature=exam.temperature)
            self._collector.release(before_round=version + place + 1)

    def _owed(self, exam: Exam, round_: int, version: int, digest: str) -> list[Task]:
        def is_missing(task: Task) -> bool:
            chunk, place = divmod(task.index, len(exam.benchmark.prompts))
            problem, first = exam.benchmark.prompts[place].row, chunk * SAMPLES_PER_TASK
            samples = range(first, first + task.samples)
            name, temperature = exam.benchmark.name, exam.temperature
            return any((name, temperature, problem, sample) not in self._generations.known for sample in samples)

        return [task for task in exam.tasks(round_, version, digest, self._drawing) if is_missing(task)]

    def _collect(self, exam: Exam, round_: int, deadline_s: float) -> None:
        pending: list[Rollout] = []

        def judge_pending() -> None:
            self._judge(exam, pending)
            pending.clear()

        @contextmanager
        def waiting() -> Iterator[None]:
            judge_pending()  # there is time for it, and an interruption then finds it done
            yield

        for rollout in self._collector.in_order(round_, deadline_s, waiting):
            pending.append(rollout)
            if len(pending) == GRADED_AT_ONCE:
                judge_pending()
        judge_pending()

    def _judge(self, exam: Exam, rollouts: Sequence[Rollout]) -> None:
        """Judge and keep these answers."""
        texts = [self._text_of(rollout.response_tokens) for rollout in rollouts]
        asked = [exam.place_of(rollout) for rollout in rollouts]
        pairs = [(text, prompt.answer or "") for text, (prompt, _) in zip(texts, asked, strict=True)]
        grades = self._pool.grade_many(pairs)
        self._generations.add(
            [
                Generation(
                    benchmark=exam.benchmark.name,
                    temperature=exam.temperature,
                    problem=prompt.row,
                    sample=sample,
                    outcome=grade.outcome,
                    question=prompt.question,
                    truth=prompt.answer or "",
                    answer=grade.answer,
                    response=text,
                    finish_reason=rollout.finish_reason,
                    response_tokens=int(rollout.response_tokens.size),
                    weight_version=rollout.spans[0].weight_version,
                    generator_id=rollout.generator_id,
                )
                for rollout, text, (prompt, sample), grade in zip(rollouts, texts, asked, grades, strict=True)
            ]
        )


def drawing(evaluation: EvaluationConfig, sampling: SamplingConfig, model_folder: Path) -> Drawing:
    """As [evaluation] and [sampling] say, ending where the model in the folder ends its answers."""
    return Drawing(
        evaluation.samples,
        sampling.max_response_tokens,
        sampling.top_p,
        hf_checkpoint.stop_token_ids(model_folder),
    )


def describe_asking(data: DataConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """What answers must have in common to be counted together."""
    return {
        "system_prompt": data.system_prompt,
        "question_suffix": data.question_suffix,
        "chat_template": data.chat_template,
        "top_p": sampling.top_p,
        "max_response_tokens": sampling.max_response_tokens,
    }


def exams_of(benchmarks: Sequence[Benchmark], temperatures: Sequence[float]) -> list[Exam]:
    """Every benchmark at every temperature, one temperature after the other."""
    return [Exam(benchmark, temperature) for temperature in temperatures for benchmark in benchmarks]
