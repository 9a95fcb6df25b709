"""The verifier of the paper's code, beside the tolerant one."""

from __future__ import annotations

import time

import pytest

from learner.grading.extraction import Candidate
from learner.grading.math_grading import Outcome, grade_response
from learner.grading.pool import GraderPool
from learner.grading.strict_grading import find_last_box, grade_box


@pytest.mark.parametrize(
    ("response", "truth", "strict", "tolerant"),
    [
        (r"so \boxed{4}", "4", Outcome.CORRECT, Outcome.CORRECT),
        ("The answer is 4.", "4", Outcome.NO_ANSWER, Outcome.CORRECT),
        (r"\boxed{4}, no: \boxed{5}", "4", Outcome.WRONG, Outcome.WRONG),
        (r"\boxed{\frac{1}{2}}", "0.5", Outcome.CORRECT, Outcome.CORRECT),
        (r"\boxed{x+1}", "1+x", Outcome.CORRECT, Outcome.CORRECT),
        (r"<think>\boxed{4}</think> The answer is 5.", "4", Outcome.CORRECT, Outcome.WRONG),
        (r"\boxed{", "4", Outcome.NO_ANSWER, Outcome.NO_ANSWER),
        (r"\boxed{4}", "", Outcome.WRONG, Outcome.WRONG),
    ],
)
def test_only_the_last_box_counts(response: str, truth: str, strict: Outcome, tolerant: Outcome) -> None:
    assert grade_box(find_last_box(response), truth).outcome is strict
    assert grade_response(response, truth).outcome is tolerant


def test_a_strict_pool_grades_strictly() -> None:
    pairs = [("The answer is 4.", "4"), (r"\boxed{4}", "4")]
    with GraderPool(workers=1, strict=True) as pool:
        assert [grade.outcome for grade in pool.grade_many(pairs)] == [Outcome.NO_ANSWER, Outcome.CORRECT]


@pytest.mark.parametrize("answer", ["1e99999999", "10^{99999999}", "99999999!", r"\binom{99999999}{7}"])
def test_an_answer_that_nobody_could_compute_is_wrong_at_once(answer: str) -> None:
    grade_box(Candidate("1+1", ""), "2")  # imports math-verify
    started = time.process_time()
    assert not grade_box(Candidate(answer, ""), "7").correct
    assert time.process_time() - started < 1
