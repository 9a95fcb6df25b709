"""Evaluation tasks through a real queue: every answer once, of one version, graded, kept, and not sampled again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from learner.data.prompts import Prompt
from learner.evaluation.benchmarks import Benchmark
from learner.evaluation.eval_tasks import SAMPLES_PER_TASK, BenchmarkRunner, EvalSampling, Measurement, measurements_of
from learner.evaluation.generations import Generations
from learner.evaluation.results import summarise
from learner.grading.math_grading import Outcome
from learner.grading.pool import GraderPool
from learner.rollouts.collector import Collector
from services.contracts import Purpose, Task
from services.errors import ConfigError, DataError
from services.run_folder import EvaluationFolder
from services.streams.connection import Keys, connect
from services.streams.rollouts import RolloutReader
from services.streams.tasks import TaskIssuer
from tests.support.answering import Answering

DIGEST = "ab" * 32
SAMPLES = 11
SAMPLING = EvalSampling(samples=SAMPLES, max_response_tokens=8, top_p=1.0, stop_token_ids=(2,))


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(1) as pool:
        yield pool


def benchmark(name: str = "sums", answers: tuple[str, ...] = ("1", "2", "3")) -> Benchmark:
    rows = [(index * 2, answer) for index, answer in enumerate(answers)]  # rows that were left out leave gaps
    return Benchmark(name, [Prompt(row, f"q{row}", answer, np.array([row, 5], np.int32)) for row, answer in rows])


@contextmanager
def collector_of(redis_url: str, run_id: str, *, first_round: int = 0) -> Iterator[Collector]:
    with connect(redis_url) as client:
        keys = Keys(run_id)
        collector = Collector(
            TaskIssuer(client, keys), RolloutReader(client, keys), first_round=first_round, purpose=Purpose.EVALUATION
        )
        collector.start()
        try:
            yield collector
        finally:
            collector.stop()


def first_token(tokens: np.ndarray[tuple[int], np.dtype[np.int32]]) -> str:
    return str(int(tokens[0]) % 4)


def test_tasks_cover_every_sample_of_every_problem_once() -> None:
    measurement = Measurement(benchmark(), 0.6)
    tasks = measurement.tasks(7, 7, DIGEST, SAMPLING)
    assert sum(task.samples for task in tasks) == 3 * SAMPLES
    assert len({task.task_id for task in tasks}) == len({task.position for task in tasks}) == len(tasks)
    assert {(task.min_weight_version, task.max_weight_version, task.round) for task in tasks} == {(7, 7, 7)}
    assert {task.purpose for task in tasks} == {Purpose.EVALUATION}
    assert [task.samples for task in tasks] == [SAMPLES_PER_TASK] * 3 + [SAMPLES - SAMPLES_PER_TASK] * 3


def test_other_weights_or_temperatures_have_other_tasks() -> None:
    def ids(temperature: float, digest: str) -> set[str]:
        return {task.task_id for task in Measurement(benchmark(), temperature).tasks(0, 0, digest, SAMPLING)}

    assert not ids(0.6, DIGEST) & ids(1.0, DIGEST)
    assert not ids(0.6, DIGEST) & ids(0.6, "cd" * 32)


def test_every_answer_is_graded_and_kept_once(tmp_path: Path, redis_url: str, pool: GraderPool) -> None:
    measurements = measurements_of([benchmark(), benchmark("more", ("0",))], [0.6, 1.0])
    generations = Generations(EvaluationFolder(tmp_path), {"digest": DIGEST})
    with collector_of(redis_url, "run") as collector, Answering(redis_url, Keys("run")):
        runner = BenchmarkRunner(collector, pool, generations, first_token, SAMPLING)
        runner.run(measurements, version=5, digest=DIGEST, deadline_s=30)
    kept = list(generations.read())
    expected = {
        (name, temperature, row, sample)
        for name, rows in (("sums", (0, 2, 4)), ("more", (0,)))
        for temperature in (0.6, 1.0)
        for row in rows
        for sample in range(SAMPLES)
    }
    assert len(kept) == len(expected)
    assert {generation.key for generation in kept} == expected
    assert {generation.weight_version for generation in kept} == {5}
    assert all((one.outcome is Outcome.CORRECT) == (one.response == one.truth) for one in kept)
    results = summarise(kept, SAMPLES)
    assert list(results.by_temperature) == [0.6, 1.0]
    assert results.by_temperature[0.6].benchmarks["sums"].problems == 3


def test_what_is_there_is_not_drawn_again(tmp_path: Path, redis_url: str, pool: GraderPool) -> None:
    measurements = measurements_of([benchmark()], [1.0])
    asked: list[Task] = []

    def note(task: Task) -> bool:
        asked.append(task)
        return True

    for samples in (SAMPLES_PER_TASK, SAMPLES):
        sampling = EvalSampling(samples, 8, 1.0, (2,))
        generations = Generations(EvaluationFolder(tmp_path), {"digest": DIGEST})
        with collector_of(redis_url, "run") as collector, Answering(redis_url, Keys("run"), may_answer=note):
            BenchmarkRunner(collector, pool, generations, first_token, sampling).run(
                measurements, version=0, digest=DIGEST, deadline_s=30
            )
    assert len(asked) == 6
    assert len(list(generations.read())) == 3 * SAMPLES


def test_answers_are_forgotten_by_redis_once_they_are_kept(tmp_path: Path, redis_url: str, pool: GraderPool) -> None:
    with collector_of(redis_url, "run") as collector, Answering(redis_url, Keys("run")):
        BenchmarkRunner(collector, pool, Generations(EvaluationFolder(tmp_path), {}), first_token, SAMPLING).run(
            measurements_of([benchmark()], [1.0]), version=0, digest=DIGEST, deadline_s=30
        )
    with connect(redis_url) as client:
        assert client.xlen(Keys("run").rollouts) == 0


def test_the_answers_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    Generations(EvaluationFolder(tmp_path), {"digest": "a", "top_p": 1.0})
    with pytest.raises(ConfigError, match="differs in digest"):
        Generations(EvaluationFolder(tmp_path), {"digest": "b", "top_p": 1.0})
    assert Generations(EvaluationFolder(tmp_path), {"digest": "b"}, replace=True).known == set()


def test_an_incomplete_evaluation_has_no_results(tmp_path: Path, redis_url: str, pool: GraderPool) -> None:
    generations = Generations(EvaluationFolder(tmp_path), {})
    with collector_of(redis_url, "run") as collector, Answering(redis_url, Keys("run")):
        BenchmarkRunner(collector, pool, generations, first_token, SAMPLING).run(
            measurements_of([benchmark()], [1.0]), version=0, digest=DIGEST, deadline_s=30
        )
    with pytest.raises(DataError, match=f"{SAMPLES} of {SAMPLES + 1} answers"):
        summarise(generations.read(), SAMPLES + 1)
    assert summarise(generations.read(), SAMPLES - 1).samples == SAMPLES - 1
