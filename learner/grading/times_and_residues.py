r"""Reads two kinds of answers that are numbers with more to them: times of the day, and residues.

same_time("17:00", "5 pm")          True
same_time("7:05", "7:05 am")        True: the half of the day may be left out
same_time("17:00", "5 am")          False
same_time("3:2", "3 pm")            None: one of them is no time
same_residue(r"12 \pmod 7", r"x \equiv 5 \mod 7")   True
same_residue("5", r"5 \mod 7")      True: the modulus may be left out
same_residue("5", "7")              None
"""

from __future__ import annotations

import re
from typing import NamedTuple

from learner.grading.exact_numbers import read_number
from learner.grading.notation import plain_words

HALF_DAY = 12 * 60
_TIME = re.compile(r"(\d{1,2})(?::(\d\d))?\s*([ap]\.?\s?m)?\.?(?:\s*o'clock)?", re.IGNORECASE)
_NAMED = {"noon": HALF_DAY, "midday": HALF_DAY, "midnight": 0}
_RESIDUE = re.compile(
    r"(?:[A-Za-z]\s*(?:\\equiv|=)\s*)?(.+?)\s*\(?\s*(?:\\(?:p|b|op)?mod(?![A-Za-z])|\bmod(?:ulo)?\b)\s*\{?\s*(\d{1,30})\s*\}?\s*\)?"
)


class _Time(NamedTuple):
    """Minutes since midnight; of a time that does not name its half of the day, since midnight or noon."""

    minutes: int
    named: bool
    """Whether it says which half of the day."""


def same_time(answer: str, truth: str) -> bool | None:
    """Whether both are the same time of the day; None unless both are times and one says which half of the day."""
    given, expected = _time(answer), _time(truth)
    if given is None or expected is None or not (given.named or expected.named):
        return None
    day = 2 * HALF_DAY if given.named and expected.named else HALF_DAY
    return given.minutes % day == expected.minutes % day


def _time(text: str) -> _Time | None:
    text = plain_words(text).strip()
    if text.lower() in _NAMED:
        return _Time(_NAMED[text.lower()], named=True)
    match = _TIME.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return None
    hour, minute, half = int(match[1]), int(match[2] or 0), match[3]
    if minute > 59 or hour > (12 if half else 24) or (half and hour == 0):
        return None
    if half:
        return _Time(hour % 12 * 60 + minute + HALF_DAY * (half[0] in "pP"), named=True)
    return _Time(hour % 24 * 60 + minute, named=hour > 12 or hour == 0)


def same_residue(answer: str, truth: str) -> bool | None:
    """Whether both are the same residue; None unless at least one is a residue and the other is one or a number."""
    given, expected = _residue(answer), _residue(truth)
    if given is None and expected is None:
        return None
    if given is not None and expected is not None:
        return given[1] == expected[1] and (given[0] - expected[0]) % given[1] == 0
    value, modulus = given or expected or (0, 1)
    number = read_number(truth if given is not None else answer)
    return None if number is None else number.value in (value, value % modulus)


def _residue(text: str) -> tuple[int, int] | None:
    """Value and modulus."""
    match = _RESIDUE.fullmatch(plain_words(text).strip())
    number = read_number(match[1]) if match else None
    if match is None or number is None or number.value.denominator != 1 or int(match[2]) == 0:
        return None
    return int(number.value), int(match[2])
