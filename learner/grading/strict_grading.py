r"""Grades as the paper's code does: only the last \boxed{...} of a response is its answer, and a response without one
has none. So a model is rewarded for the form as well, and an untrained one scores lower than under `math_grading`.

The reference code calls an answer right when one of three checks does: the normalisation of Hendrycks' MATH, sympy, or
math-verify. Here `learner.grading.notation` stands for the first, and math-verify, which asks sympy, for the others.
"""

from __future__ import annotations

from learner.data.answers import last_boxed
from learner.grading.expressions import is_too_large
from learner.grading.extraction import Candidate
from learner.grading.math_grading import MAX_ANSWER_CHARACTERS, Grade, Outcome
from learner.grading.notation import as_written, normalised


def find_last_box(response: str) -> Candidate:
    """The last complete box of the whole response."""
    return Candidate(boxed=last_boxed(response), tail="")


def grade_box(candidate: Candidate, truth: str) -> Grade:
    """The grade of what `find_last_box` found; without limits on time and memory, which `learner.grading.pool` sets."""
    answer = candidate.boxed
    if answer is None:
        return Grade(Outcome.NO_ANSWER)
    correct = len(answer) <= MAX_ANSWER_CHARACTERS and _same(answer, truth)
    return Grade(Outcome.CORRECT if correct else Outcome.WRONG, answer[:MAX_ANSWER_CHARACTERS])


def _same(answer: str, truth: str) -> bool:
    written = as_written(normalised(truth))
    if written and as_written(normalised(answer)) == written:
        return True
    if is_too_large(answer):
        return False
    import math_verify

    gold, given = (math_verify.parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (truth, answer))
    return bool(math_verify.verify(gold, given, timeout_seconds=None))
