r"""Grades one response against the reference answer, by math-verify.

The answer is the content of the response's last complete `\boxed{...}`, else what math-verify extracts from the end of
the text. It is correct when it is written like the reference answer or math-verify finds the two equal. Both are first
read as a person reads them, where math-verify does not:

- 4.5e33, 4.5 \times 10^{33} and 1\,000 are numbers, compared relative to their size; a full stop or comma at the end
  is not part of the answer;
- an angle in degrees equals the same one in radians;
- "what percent" may be answered with or without the sign;
- words around a number are its unit (36 hours, 10 \frac{\text{m}}{\text{s}});
- several boxes in a row are one list.

Two lengths, times or masses in different units are compared after conversion: 12 m is not 12 cm, 120 mm is.

`grade_response` may not end on an answer like 9^{9^{9^9}}: `learner.grading.pool` sets the limits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Any

from learner.data.answers import last_boxed
from learner.grading.units import in_base_units

TAIL_CHARACTERS = 2_000
"""Characters at the end of a response without a box that are searched for an answer."""
MAX_ANSWER_CHARACTERS = 2_000
"""A longer answer is wrong; the longest of the six benchmarks has under 400."""
RELATIVE_TOLERANCE = Decimal("1e-6")
TINY_EXPONENT = -3
"""For numbers below a thousandth, math-verify's six decimals are too few to tell them apart."""


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


@dataclass(frozen=True, slots=True)
class Candidate:
    """The part of a response that decides its grade; short, however long the response."""

    boxed: str | None
    """Content of the last complete box."""
    tail: str
    """The end of the response; empty where the box alone decides."""


def find_candidate(response: str, truth: str) -> Candidate:
    """The part of the response that can hold an answer equal to this reference answer. Linear in the length."""
    boxed = last_boxed(response)
    # One box can hold a list, and so can several boxes in a row: only a reference with a comma may be such a list.
    needs_tail = boxed is None or "," in truth
    return Candidate(boxed, response[-TAIL_CHARACTERS:] if needs_tail else "")


def grade_response(response: str, truth: str) -> Grade:
    """The grade of a response; deterministic, without limits on time and memory."""
    return grade_answer(find_candidate(response, truth), truth)


def grade_answer(candidate: Candidate, truth: str) -> Grade:
    """The grade of a candidate that `find_candidate` found."""
    if candidate.boxed is None:
        whole = candidate.tail.strip()
        if _as_number(whole) is not None:  # nothing but a number needs no search for it
            return Grade(Outcome.CORRECT if _equal(whole, truth) else Outcome.WRONG, whole)
        extracted = _parse(candidate.tail, boxed=False)
        if not extracted:
            return Grade(Outcome.NO_ANSWER)
        shown = next((part for part in extracted if isinstance(part, str)), str(extracted[0]))
        correct = _equal(shown, truth)
        return Grade(Outcome.CORRECT if correct else Outcome.WRONG, shown)
    if len(candidate.boxed) > MAX_ANSWER_CHARACTERS:
        return Grade(Outcome.WRONG, candidate.boxed[:MAX_ANSWER_CHARACTERS])
    correct = _equal(candidate.boxed, truth)
    if not correct and candidate.tail.count("boxed") > 1:
        correct = _matches(_parse(candidate.tail, boxed=True), _normalised(truth))
    return Grade(Outcome.CORRECT if correct else Outcome.WRONG, candidate.boxed)


def _equal(answer: str, truth: str) -> bool:
    """Whether two answers, each a piece of LaTeX or plain text, mean the same."""
    answer, truth = _normalised(answer), _normalised(truth)
    if _significant_characters(answer) == _significant_characters(truth):
        return bool(_significant_characters(truth))
    numbers = _as_number(answer), _as_number(truth)
    if numbers[0] is not None and numbers[1] is not None:
        return _close(numbers[0], numbers[1])
    measured = in_base_units(answer, truth)
    if measured is not None:
        return _verified(*measured)
    readings = ((answer, truth), _as_radians(answer, truth), _without_percent(answer, truth), _bare(answer, truth))
    return any(_verified(*reading) for reading in dict.fromkeys(readings) if all(reading))


def _as_number(text: str) -> Decimal | None:
    """The value of a number written in digits, with or without a power of ten; None for anything else."""
    match = _PLAIN_NUMBER.fullmatch(text)
    return Decimal(f"{match[1]}e{match[2] or 0}") if match else None


def _close(answer: Decimal, truth: Decimal) -> bool:
    """Integers exactly, others to a millionth of the larger; by math-verify's six decimals 1e-19 equals 1e-27."""
    if answer == truth or (answer == answer.to_integral_value() and truth == truth.to_integral_value()):
        return answer == truth
    return abs(answer - truth) <= RELATIVE_TOLERANCE * max(abs(answer), abs(truth))


def _verified(answer: str, truth: str) -> bool:
    if not _matches(_parse(f"\\boxed{{{answer}}}", boxed=True), truth):
        return False
    number = _as_number(truth)
    return number is None or number.is_zero() or number.adjusted() >= TINY_EXPONENT or _matches_tiny(answer, number)


def _matches_tiny(answer: str, truth: Decimal) -> bool:
    """Compare with a tiny number relative to its size: with six decimals all numbers below 1e-6 are equal."""
    value = _without_words(answer.rpartition("=")[2])
    number = _as_number(value)
    if number is not None:
        return _close(number, truth)
    shift = -truth.adjusted()
    scaled = _parse(rf"\boxed{{({value}) \cdot 10^{{{shift}}}}}", boxed=True)
    return _matches(scaled, f"{truth.scaleb(shift):f}")


def _matches(answer: list[Any], truth: str) -> bool:
    """Whether math-verify finds a parsed answer equal to the normalised reference; it is not symmetric in the two."""
    import math_verify

    gold = _parse(f"\\boxed{{{truth}}}", boxed=True)
    # A set written as an inequality is the set: 1 <= x <= 3 answers [1, 3].
    return bool(math_verify.verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None))


def _parse(text: str, *, boxed: bool) -> list[Any]:
    """What math-verify reads in a text: expressions, or the text itself if it cannot parse it; [] for nothing."""
    import math_verify

    parsed: list[Any] = math_verify.parse(text, _extraction(boxed), parsing_timeout=None)
    return parsed


@cache
def _extraction(boxed: bool) -> tuple[Any, ...]:
    import math_verify

    latex = math_verify.LatexExtractionConfig(boxed_match_priority=0 if boxed else -1)
    return (latex, math_verify.ExprExtractionConfig())


_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_PLAIN_NUMBER = re.compile(
    rf"([+-]?{_NUMBER})(?:\s*(?:\\times|\\cdot)\s*10\s*\^\s*\{{?([+-]?\d{{1,4}})\}}?)?", re.ASCII
)
_SCIENTIFIC = re.compile(rf"(?<![A-Za-z\\\d.])({_NUMBER})[eE]([+-]?\d+)(?![A-Za-z\d])")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;:! ]|\{,\})(?=\d{3}(?!\d))")
_MIXED = re.compile(r"(?<![\d.])(\d+)\s+(\d+)/(\d+)(?![\d.])")
_BARE_POINT = re.compile(r"(?<=\d)\.(?![\d.])")
_DEGREES = re.compile(rf"({_NUMBER})\s*\^\s*(?:\\circ|\{{\s*\\circ\s*\}})")
_TEXT = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"
_WHOLE_TEXT = re.compile(rf"^\s*{_TEXT}\s*$")
_TEXT_COMMAND = re.compile(_TEXT)
_EDGE_TEXT = re.compile(rf"^\s*{_TEXT}|(?:\\frac\{{\s*{_TEXT}\s*\}}\{{\s*{_TEXT}\s*\}}|{_TEXT})(?:\^\{{?\d\}}?)?\s*$")
_UNIT_WORDS = re.compile(r"^([-+]?\\?\$?\s*[\d.,/ ]*\d)\s*(?!(?:pi|sqrt|and|or)\b)[A-Za-z]{3,}(?:\s+[A-Za-z]+)*$")
_LAYOUT = re.compile(r"\\left|\\right|\\displaystyle|\\?\$")
_SPACE = re.compile(r"(?:\\[,;:! ]|[\s~])+")
_SPACE_OUTSIDE_DIGITS = re.compile(r"(?<!\d) | (?!\d)")


def _normalised(text: str) -> str:
    """Rewrite notation that math-verify misreads; the meaning stays."""
    text = text.strip().rstrip(".,;").replace("°", r"^\circ").replace(r"\(", "").replace(r"\)", "")
    text = _THOUSANDS.sub("", text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", _BARE_POINT.sub("", text))
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    return re.sub(r"\bnp\.(\w+)", r"\\\1", text)  # Minerva's references hold a few numpy expressions


def _significant_characters(text: str) -> str:
    """The characters that carry meaning, to compare answers as written. A space between digits has one (1 1/2)."""
    text = _LAYOUT.sub("", _TEXT_COMMAND.sub(r"\1", text)).replace("dfrac", "frac").replace("tfrac", "frac")
    return _SPACE_OUTSIDE_DIGITS.sub("", _SPACE.sub(" ", text).strip())


def _as_radians(answer: str, truth: str) -> tuple[str, str]:
    return _DEGREES.sub(r"\\frac{\1 \\pi}{180}", answer), _DEGREES.sub(r"\\frac{\1 \\pi}{180}", truth)


def _without_percent(answer: str, truth: str) -> tuple[str, str]:
    """Both without the sign when one of them has it; otherwise unchanged."""
    if ("%" in answer) == ("%" in truth):
        return answer, truth
    return answer.replace("\\%", "").replace("%", ""), truth.replace("\\%", "").replace("%", "")


def _bare(answer: str, truth: str) -> tuple[str, str]:
    return _without_words(answer), _without_words(truth)


def _without_words(text: str) -> str:
    """A number without the words around it; text alone stays."""
    whole = _WHOLE_TEXT.match(text)
    text = whole[1].strip() if whole else text
    shorter = _UNIT_WORDS.sub(r"\1", _EDGE_TEXT.sub("", text)).strip()
    return shorter or text
