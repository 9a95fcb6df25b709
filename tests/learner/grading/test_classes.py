"""Classes of equal answers without a reference answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest

from learner.grading.classes import answer_classes
from learner.grading.math_grading import Grade, Outcome
from learner.grading.pool import GraderPool

LIMIT_S = 1.0


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(workers=1, time_limit_s=LIMIT_S) as made:
        yield made


@pytest.mark.parametrize(
    ("responses", "classes"),
    [
        ((r"\boxed{4}", "So the answer is 4.", r"\boxed{5}", r"\boxed{4.0}"), [0, 0, 1, 0]),
        ((r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{\frac{2}{4}}"), [0, 0, 0]),
        ((r"\boxed{0}", r"\boxed{1}", r"\boxed{0}"), [0, 1, 0]),  # also the answer that everything is compared with
        ((r"\boxed{x+1}", r"\boxed{1+x}", r"\boxed{x}"), [0, 0, 1]),
        (("I do not know.", r"\boxed{7}", ""), [None, 0, None]),
        ((), []),
    ],
)
def test_equal_answers_share_a_class(pool: GraderPool, responses: tuple[str, ...], classes: list[int | None]) -> None:
    assert answer_classes(responses, pool) == classes


@pytest.mark.parametrize("poison", [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{" + "9" * 100_000 + "}", r"\boxed{1e99999999}"])
def test_a_poisoned_answer_cannot_hold_up_a_vote(pool: GraderPool, poison: str) -> None:
    started = time.monotonic()
    classes = answer_classes([poison, r"\boxed{7}", poison, r"\boxed{7}", r"\boxed{8}"], pool)
    assert classes[1] == classes[3]
    assert classes[1] is not None and classes[4] is not None and classes[1] != classes[4]
    assert classes[0] is None or classes[0] not in (classes[1], classes[4])
    assert time.monotonic() - started < 60, "one limit, and a worker that is started again"


class SlowPool(GraderPool):
    """Reads every answer at once; a comparison with "slow" takes for ever."""

    def __init__(self) -> None:
        super().__init__(1)
        self.limits = 0

    def grade_many(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        return [self._grade(response, truth) for response, truth in pairs]

    def _grade(self, response: str, truth: str) -> Grade:
        if "slow" in (response, truth) and truth != "0":
            self.limits += 1
            return Grade(Outcome.TIMEOUT, "")
        return Grade(Outcome.CORRECT if response == truth else Outcome.WRONG, response)


@pytest.mark.parametrize(
    ("answers", "classes", "limits"),
    [
        (["1", "2", "3", "slow", "4", "1"], [0, 1, 2, None, 3, 0], 1),
        (["slow", "1", "2", "1"], [None, 0, 1, 0], 3),
        (["slow", "1"], [0, 1], 1),
        (["1", "slow", "slow", "2"], [0, None, None, 1], 2),
    ],
)
def test_an_answer_that_gets_stuck_in_a_comparison_leaves_the_vote(
    answers: list[str], classes: list[int | None], limits: int
) -> None:
    pool = SlowPool()
    assert answer_classes(answers, pool) == classes
    assert pool.limits == limits
