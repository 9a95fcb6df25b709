"""Sorts the answers to one prompt into classes of equal ones, without a reference answer.

Equality of answers is not transitive at its edges (0.33 = 1/3 = 0.333), so an answer joins the first class whose first
answer it equals. An answer that cannot be compared with anything within the pool's limits has no class: it costs one
limit, once, whatever the other answers are. One that can be read, and then is not compared with another answer within
them, has none either: it costs one limit more, not one for every class.
"""

from __future__ import annotations

from collections.abc import Sequence

from learner.grading.math_grading import MAX_ANSWER_CHARACTERS, Outcome
from learner.grading.pool import GraderPool

PROBE = "0"
"""Every answer is compared with this first, which shows whether it can be read at all."""


def answer_classes(responses: Sequence[str], pool: GraderPool) -> list[int | None]:
    """[G] the class of each response's answer, counted from 0 in order of their first answers; None: no answer.

    answer_classes([r"\\boxed{4}", "So it is 4.", "no idea", "5"], pool)     [0, 0, None, 1]
    """
    grades = pool.grade_many([(response, PROBE) for response in responses])
    readable = [
        grade.outcome in (Outcome.CORRECT, Outcome.WRONG) and len(grade.answer) < MAX_ANSWER_CHARACTERS
        for grade in grades
    ]
    classes: list[int | None] = [None] * len(responses)
    left = [index for index, can in enumerate(readable) if can]
    for class_ in range(len(responses)):
        if not left:
            break
        first, others = left[0], left[1:]
        same = pool.grade_many([(responses[index], grades[first].answer) for index in others])
        graded = dict(zip(others, same, strict=True))
        stuck = {index for index, grade in graded.items() if grade.outcome in (Outcome.TIMEOUT, Outcome.FAILED)}
        if len(stuck) == len(others):  # the first one is to blame; of two nobody knows which
            stuck = {first} if len(others) > 1 else set()
        members = ({first} | {index for index, grade in graded.items() if grade.correct}) - stuck
        for index in members:
            classes[index] = class_
        left = [index for index in left if index not in members | stuck]
    return in_order_of_first(classes)


def in_order_of_first(classes: Sequence[int | None]) -> list[int | None]:
    """The same classes, counted from 0 without gaps."""
    numbers = {class_: number for number, class_ in enumerate(dict.fromkeys(one for one in classes if one is not None))}
    return [None if class_ is None else numbers[class_] for class_ in classes]
