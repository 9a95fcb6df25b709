"""Rewards of a round's rollouts, graded beside the learner's thread while the round still arrives. Knows no objective.

A rollout earns 1 when math-verify finds its answer equal to the reference answer, else 0. An answer that cannot be
judged within the pool's limits on time and memory earns 0.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from learner.data.prompts import Prompt
from learner.grading.math_grading import Grade
from learner.grading.pool import GraderPool
from services.errors import DataError

MAX_WORKERS = 8
"""Judging takes milliseconds an answer: more processes than this wait for rollouts, not for each other."""


class Rewards:
    """One round at a time.

    rewards.submit("... \\boxed{4}", "4")     as each rollout arrives
    rewards.collect()                         [1.0, ...] in the order of submission
    """

    def __init__(self, *, workers: int | None = None, time_limit_s: float = 10.0) -> None:
        """Starts the grading processes; `time_limit_s` is for one answer. `workers`: half of the cores by default."""
        self._pool = GraderPool(
            workers or max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // 2)), time_limit_s=time_limit_s
        ).__enter__()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grading")
        self._waiting: deque[tuple[str, str]] = deque()
        self._graded: list[Future[list[Grade]]] = []

    def submit(self, response: str, truth: str) -> None:
        """Start grading one response."""
        self._waiting.append((response, truth))
        self._graded.append(self._thread.submit(self._grade_waiting))

    def collect(self) -> list[float]:
        """[rollouts submitted since the last call] rewards, once all are known."""
        graded, self._graded = self._graded, []
        return [float(grade.correct) for future in graded for grade in future.result()]

    def close(self) -> None:
        """Drop what is not graded yet."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._pool.close()

    def _grade_waiting(self) -> list[Grade]:
        """Everything that came in while the pool was busy, at once; later calls for the same find nothing left."""
        return self._pool.grade_many([self._waiting.popleft() for _ in range(len(self._waiting))])


def check_answers(prompts: Sequence[Prompt]) -> None:
    """Raise DataError unless every prompt has the reference answer that its reward is made of."""
    without = [prompt for prompt in prompts if not prompt.answer]
    if without:
        raise DataError(
            f"training.objective grpo needs a reference answer to every prompt, {len(without)} of {len(prompts)} have "
            f"none (the first is row {without[0].row})",
            hint="give the rows an answer, or train with objective nll, which needs none",
        )
