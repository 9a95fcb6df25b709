r"""Grades one response against the reference answer, as a person would.

The answer is found (`extraction`), written in one notation (`notation`), and compared with the reference in steps, the
first of which that applies decides:

    as written                  Evelyn = \text{Evelyn}, true = True
    the chosen option           (C) 12 = C
    part by part                (1, 2) = (1,2), 3,2,1 = \{1,2,3\}; an ellipsis only as written
    the value of an equation    x = 5 = 5, unless both are equations
    numbers with their units    120 mm = 12 cm, 2.5 million = 2500000, 50\% = 0.5; a unit may be left out
    formulas                    n(n+1)/2 = \frac{n^2+n}{2}

`docs/grading.md` has the rules. `grade_response` may not end on an answer like 9^{9^{9^9}}: `learner.grading.pool` sets
the limits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from learner.grading.exact_numbers import equal_numbers, read_number
from learner.grading.expressions import equal_expressions
from learner.grading.extraction import Candidate, find_candidate, unboxed_answer
from learner.grading.notation import as_written, normalised, plain_words
from learner.grading.structure import (
    Listed,
    approximations,
    is_name,
    read_option,
    sides,
    split_list,
    value_of,
    vector_as_list,
    without_lead,
)
from learner.grading.times_and_residues import same_residue, same_time
from learner.grading.units import ANGLE, PERCENT, Unit, split_unit

MAX_ANSWER_CHARACTERS = 2_000
"""A longer answer is wrong; the longest of the six benchmarks has under 400."""
MAX_DEPTH = 6
"""Lists within lists beyond this are compared as written."""


class Outcome(StrEnum):
    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    """No box, and nothing in the text's end that reads as an answer."""
    TIMEOUT = "timeout"
    """Grading took longer than its limit; counts as not correct."""
    FAILED = "failed"
    """Grading ran out of memory or its process died; counts as not correct."""


@dataclass(frozen=True, slots=True)
class Grade:
    """The result of grading one response."""

    outcome: Outcome
    answer: str = ""
    """The answer as found in the response."""

    @property
    def correct(self) -> bool:
        return self.outcome is Outcome.CORRECT


def grade_response(response: str, truth: str) -> Grade:
    """The grade of a response; deterministic, without limits on time and memory."""
    return grade_answer(find_candidate(response), truth)


def grade_answer(candidate: Candidate, truth: str) -> Grade:
    """The grade of a candidate that `find_candidate` found."""
    shown = candidate.boxed if candidate.boxed is not None else unboxed_answer(candidate.tail)
    if shown is None:
        return Grade(Outcome.NO_ANSWER)
    answer = candidate.tail if candidate.boxed is not None and candidate.tail else shown
    correct = len(answer) <= MAX_ANSWER_CHARACTERS and same_answer(answer, truth)
    return Grade(Outcome.CORRECT if correct else Outcome.WRONG, shown[:MAX_ANSWER_CHARACTERS])


def same_answer(answer: str, truth: str) -> bool:
    """Whether two answers, each a piece of LaTeX or plain text, mean the same."""
    given, expected = normalised(answer), normalised(truth)
    return bool(as_written(expected)) and _same(given, expected, MAX_DEPTH)


def _same(answer: str, truth: str, depth: int) -> bool:
    if as_written(answer) == as_written(truth):
        return True
    if not answer or not truth or depth == 0:
        return False
    decided = _same_option(answer, truth, depth)
    if decided is None:
        decided = _same_words(answer, truth)
    if decided is not None:
        return decided
    answer, truth = without_lead(answer), without_lead(truth)
    return any(
        _same_value(given, expected, depth) for given in approximations(answer) for expected in approximations(truth)
    )


_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|[ '-])*")
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)")
_SAME_WORDS = (
    (re.compile(r"(?:there (?:is|are) )?no (?:real )?(?:solutions?|values?|roots?)(?: exists?)?|none"), "no solution"),
    (re.compile(r"dne|(?:limit )?(?:does not|doesn't) exist"), "does not exist"),
    (re.compile(r"(?:all|any|every) reals?(?: numbers?)?"), "all real numbers"),
)
_NO_SOLUTION = (r"\emptyset", r"\{\}")
_SEVERAL_OPTIONS = re.compile(r"\(?[A-J]\)?(?:\s*(?:,|;|&|and)\s*\(?[A-J]\)?)+")
_OPTIONS_TOGETHER = re.compile(r"[A-J]{2,10}")
_CONSTANT_ADDED = re.compile(r"(.+)\+\s*[Cc]")
_COMMA_DECIMAL = re.compile(r"(-?\d+),(\d+)")


def _same_words(answer: str, truth: str) -> bool | None:
    """Words ignore case and spaces; None where one of the two is a formula or a number."""
    words = _in_known_words(answer), _in_known_words(truth)
    if "no solution" in words and any(text in _NO_SOLUTION for text in words):
        return True
    if not all(_WORDS.fullmatch(text) and not re.search(r"\b(?:and|or)\b", text) for text in words):
        return None
    if any(read_number(text) is not None for text in words) or same_time(*words) is not None:
        return None
    given, expected = (re.sub("[ -]", "", text).casefold() for text in words)
    are_words = r"\text" in answer + truth or any(" " in text for text in words)
    if given == expected and (are_words or len(given) > 2 or given == "no"):
        return True
    # ABC and BCA are the same product, but names of different polygons.
    are_names = all(text.isupper() and len(text) > 2 for text in words)
    return False if are_words or are_names else None


def _in_known_words(text: str) -> str:
    """Without the marks of text, and one way of saying it where there are several."""
    words = plain_words(text).strip(". ")
    return next((known for pattern, known in _SAME_WORDS if pattern.fullmatch(words.lower())), words)


def _same_option(answer: str, truth: str, depth: int) -> bool | None:
    """Multiple choice by letter, by text or by both; None where neither names an option."""
    if _SEVERAL_OPTIONS.fullmatch(plain_words(truth)) and _OPTIONS_TOGETHER.fullmatch(plain_words(answer)):
        return sorted(plain_words(answer)) == sorted(re.findall("[A-J]", plain_words(truth)))
    given, expected = read_option(answer), read_option(truth)
    if given is None and expected is None:
        return None
    if given and expected:
        texts_agree = not (given[1] and expected[1]) or _same(given[1], expected[1], depth - 1)
        return given[0] == expected[0] and texts_agree
    text = (given or expected or ("", ""))[1]
    if not text:
        return None
    return _same(text, truth, depth - 1) if given else _same(answer, text, depth - 1)


def _same_value(answer: str, truth: str, depth: int) -> bool:
    for decided in (same_time(answer, truth), same_residue(answer, truth)):
        if decided is not None:
            return decided
    numbers = read_number(answer), read_number(truth)
    if numbers[0] is not None and numbers[1] is not None:
        return equal_numbers(numbers[0], numbers[1]) or _is_base_left_out(answer, truth)
    if all(read_number(split_unit(text)[0]) is not None for text in (answer, truth)):
        return bool(_same_quantity(answer, truth))
    lists = split_list(answer), split_list(truth)
    vectors = vector_as_list(answer), vector_as_list(truth)
    if (vectors[0] is None) != (vectors[1] is None):  # two matrices must have the same shape
        lists = vectors[0] or lists[0], vectors[1] or lists[1]
    if lists[0] and lists[1]:
        return _same_lists(lists[0], lists[1], depth)
    if numbers[1] is not None and numbers[1].decimal and _COMMA_DECIMAL.fullmatch(answer):
        return _same(answer.replace(",", "."), truth, depth - 1)
    values = _values(answer, truth)
    if values is not None:
        return _same(*values, depth - 1)
    if lists[0] or lists[1]:
        return _same_as_list(answer, truth, lists, depth)
    quantities = _same_quantity(answer, truth)
    return _same_number_or_formula(answer, truth) if quantities is None else quantities


def _is_base_left_out(answer: str, truth: str) -> bool:
    """The reference says its base and the answer has the same digits: the question asked for that base."""
    digits, base, _ = truth.partition("_")
    return bool(base) and answer == digits


def _values(answer: str, truth: str) -> tuple[str, str] | None:
    """What to compare instead where one of the two is an equation, or both are of the same name."""
    given, expected = sides(answer), sides(truth)
    if len(given) > 1 and len(expected) > 1:
        same_name = is_name(expected[0]) and as_written(given[0]).casefold() == as_written(expected[0]).casefold()
        return (given[-1], expected[-1]) if same_name else None
    values = value_of(answer, named=False), value_of(truth, named=True)
    return values if values != (answer, truth) else None


def _same_lists(given: Listed, expected: Listed, depth: int) -> bool:
    if given.opening and expected.opening and (given.opening, given.closing) != (expected.opening, expected.closing):
        return False
    brackets = {given.opening + given.closing, expected.opening + expected.closing}
    if len(given.parts) != len(expected.parts) or (
        len(brackets) > 1 and not brackets <= {"", "{}"} and "()" not in brackets
    ):
        return False
    in_order = all(_same(*pair, depth - 1) for pair in zip(given.parts, expected.parts, strict=True))
    if in_order or given.is_ordered or expected.is_ordered:
        return in_order
    left = list(expected.parts)
    for part in given.parts:
        found = next((other for other in left if _same(part, other, depth - 1)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_as_list(answer: str, truth: str, lists: tuple[Listed | None, Listed | None], depth: int) -> bool:
    """A set of one element is that element; an interval may be written as an inequality."""
    listed = lists[0] or lists[1]
    if listed and len(listed.parts) == 1:
        only = listed.parts[0]
        return _same(only, truth, depth - 1) if lists[0] else _same(answer, only, depth - 1)
    return bool(listed and listed.opening) and equal_expressions(answer, truth)


def _same_quantity(answer: str, truth: str) -> bool | None:
    """Numbers with units. A unit may be left out on one side; two units have to measure the same thing.

    Single letters are variables, unless the other side shows that a number with a unit is asked for.
    """
    expected, expected_unit = split_unit(truth, letters=False)
    given, unit = split_unit(answer, letters=expected_unit is not None or read_number(truth) is not None)
    if unit is not None and expected_unit is None:
        expected, expected_unit = split_unit(truth)
    if unit is None and expected_unit is None:
        return _same_clock(answer, truth)
    if unit is not None and expected_unit is not None:
        return unit.agrees_with(expected_unit) and _same_measure((given, unit), (expected, expected_unit))
    if _same_number_or_formula(given, expected) or _same_clock(given, expected):
        return True
    if unit is not None:
        return unit.dimension in (PERCENT, ANGLE) and _same_number_or_formula(unit.in_base_units(given), expected)
    assert expected_unit is not None
    is_ratio = expected_unit.dimension in (PERCENT, ANGLE)
    return is_ratio and _same_number_or_formula(given, expected_unit.in_base_units(expected))


def _same_measure(given: tuple[str, Unit], expected: tuple[str, Unit]) -> bool:
    (value, unit), (expected_value, expected_unit) = given, expected
    if (unit.factor, unit.per_pi) == (expected_unit.factor, expected_unit.per_pi):
        return _same_number_or_formula(value, expected_value) or _same_clock(value, expected_value) is True
    return _same_number_or_formula(unit.in_base_units(value), expected_unit.in_base_units(expected_value))


def _same_clock(answer: str, truth: str) -> bool | None:
    """Times of the day; 3:00 is 3. None where neither is one."""
    times = _CLOCK.fullmatch(answer), _CLOCK.fullmatch(truth)
    if times[0] and times[1]:
        return answer.lstrip("0") == truth.lstrip("0")
    if times[0] or times[1]:
        hours = [re.sub(r"^0?(\d+):00$", r"\1", text) for text in (answer, truth)]
        return True if hours[0] == hours[1] else None
    return None


def _same_number_or_formula(answer: str, truth: str) -> bool:
    if as_written(answer) == as_written(truth):
        return True
    numbers = read_number(answer), read_number(truth)
    if numbers[0] is not None and numbers[1] is not None:
        return equal_numbers(numbers[0], numbers[1])
    added = _CONSTANT_ADDED.fullmatch(answer), _CONSTANT_ADDED.fullmatch(truth)
    if added[0] and added[1]:  # of an antiderivative, C or c
        answer, truth = added[0][1], added[1][1]
    return equal_expressions(answer, truth)
