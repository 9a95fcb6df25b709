"""Answers are graded in processes of their own, with limits, whatever becomes of one of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from learner.grading.math_grading import Outcome
from learner.grading.pool import GraderPool, _Batch

EASY = (r"\boxed{2x+1}", "1+2x")
TOWER = (r"\boxed{9^{9^{9^9}}}", "7")
"""Its evaluation never ends, inside one C call."""


def worker_pids() -> list[int]:
    return [
        child.pid for child in multiprocessing.active_children() if child.name == "grader" and child.pid is not None
    ]


def test_an_answer_that_hangs_times_out_and_the_others_are_graded_in_order() -> None:
    with GraderPool(workers=2, time_limit_s=2) as pool:
        grades = pool.grade_many([(r"\boxed{1/2}", "0.5"), TOWER, EASY, (r"\boxed{x}", "y")])
        again = pool.grade_many([EASY])
    assert [grade.outcome for grade in grades] == [
        Outcome.CORRECT,
        Outcome.TIMEOUT,
        Outcome.CORRECT,
        Outcome.WRONG,
    ]
    assert grades[1].answer == "9^{9^{9^9}}"
    assert again[0].correct


def test_a_worker_that_died_is_replaced() -> None:
    with GraderPool(workers=1) as pool:
        assert pool.grade_many([EASY])[0].correct
        (before,) = worker_pids()
        os.kill(before, signal.SIGKILL)
        assert pool.grade_many([EASY])[0].correct
        assert worker_pids() != [before]


class Murderous(GraderPool):
    """Kills the worker that has an answer with this truth, so many times."""

    def __init__(self, truth: str, times: int) -> None:
        super().__init__(workers=2)
        self._truth = truth
        self._left = times

    def _receive(self, batch: _Batch) -> None:
        for worker in self._workers:
            if self._left and worker.job is not None and worker.job.truth == self._truth:
                self._left -= 1
                worker.process.kill()
                worker.process.join()
        super()._receive(batch)


def test_an_answer_whose_worker_dies_is_tried_once_more() -> None:
    """The first death may have another reason."""
    with Murderous("0.5", 1) as pool:
        grades = pool.grade_many([EASY, (r"\boxed{1/2}", "0.5"), (r"\boxed{3}", "3")])
    assert [grade.outcome for grade in grades] == [Outcome.CORRECT] * 3


def test_an_answer_whose_worker_dies_twice_has_failed_and_holds_up_no_other() -> None:
    with Murderous(TOWER[1], 2) as pool:
        grades = pool.grade_many([EASY, TOWER, (r"\boxed{3}", "3")])
    assert [grade.outcome for grade in grades] == [Outcome.CORRECT, Outcome.FAILED, Outcome.CORRECT]
    assert grades[1].answer == "9^{9^{9^9}}"


def test_a_strict_pool_takes_the_last_box_alone() -> None:
    pairs = [("it is 4", "4"), (r"\boxed{4}", "4")]
    with GraderPool(workers=1, strict=True) as strict, GraderPool(workers=1) as lenient:
        assert [grade.correct for grade in strict.grade_many(pairs)] == [False, True]
        assert [grade.correct for grade in lenient.grade_many(pairs)] == [True, True]


def test_a_workers_memory_is_bounded() -> None:
    with GraderPool(workers=1, time_limit_s=2, memory_bytes=1 << 27) as pool:
        pool.grade_many([EASY])
        (pid,) = worker_pids()
        limits = Path(f"/proc/{pid}/limits").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
        greedy = pool.grade_many([(r"\boxed{10^{10^{10}}}", "7"), EASY])
    (line,) = [line for line in limits.splitlines() if line.startswith("Max address space")]
    (size,) = [int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmSize")]
    assert int(line.split()[3]) - size <= 1 << 27, "on top of what the worker had when it started"
    assert not greedy[0].correct
    assert greedy[1].correct


def test_equal_answers_get_equal_grades_however_many_there_are() -> None:
    pairs = [EASY, (r"\boxed{3}", "4")] * 50
    with GraderPool(workers=1) as pool:
        grades = pool.grade_many(pairs)
        assert pool.grade_many([]) == []
    assert [grade.correct for grade in grades] == [True, False] * 50


def test_leaving_the_pool_ends_its_workers() -> None:
    with GraderPool(workers=2):
        assert len(worker_pids()) == 2
    assert worker_pids() == []


def test_a_pool_has_at_least_one_worker() -> None:
    with pytest.raises(ValueError, match="got 0"):
        GraderPool(workers=0)
