"""Reads numbers that are spelled out, in English and in Chinese.

spelled_out("two hundred and five")     205
spelled_out("three quarters")           3/4
spelled_out("二十五")                    25
spelled_out("apples")                   None
"""

from __future__ import annotations

import re
from fractions import Fraction

SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "quadrillion": 10**15,
    "dozen": 12, "lakh": 10**5, "crore": 10**7, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8, "千万": 10**7,
    "百万": 10**6, "千": 10**3, "百": 10**2, "مليون": 10**6, "مليار": 10**9, "ألف": 10**3, "مئة": 10**2, "مائة": 10**2,
}  # fmt: skip
_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = [
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
]  # fmt: skip
UNITS_AND_TENS = {word: value for value, word in enumerate(_SMALL)} | {
    word: 10 * value for value, word in enumerate(_TENS, start=2)
}
PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
NUMBER_WORDS = {*UNITS_AND_TENS, *SCALES, *PARTS, "minus", "negative"}
_HAN_DIGITS = {c: value for value, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000}


def spelled_out(text: str) -> Fraction | None:
    """The number that a text consists of; None if there is anything else in it."""
    value = _english(text)
    return _han(text) if value is None else value


def _english(text: str) -> Fraction | None:
    """Words: "two hundred and five", "three quarters", "two and a half", "a dozen"."""
    words = [word for word in re.split(r"[\s-]+", text.lower()) if word]
    if not 0 < len(words) <= 20:
        return None
    if words[0] in ("a", "an") and len(words) > 1:
        words[0] = "one"
    denominator = PARTS.get(words[-1]) or PARTS.get(words[-1].removesuffix("s"))
    if denominator is not None:
        return _english_fraction(words[:-1], denominator)
    value = _cardinal(words)
    return None if value is None else Fraction(value)


def _english_fraction(words: list[str], denominator: int) -> Fraction | None:
    whole: int | None = 0
    if "and" in words:
        split = len(words) - 1 - words[::-1].index("and")
        whole, words = _cardinal(words[:split]), words[split + 1 :]
    above = 1 if words in ([], ["a"], ["one"]) else _cardinal(words)
    if whole is None or above is None or (not words and denominator != 2):
        return None
    return whole + Fraction(above, denominator)


def _cardinal(words: list[str]) -> int | None:
    total, current, seen = 0, 0, False
    for word in words:
        scale = SCALES.get(word) or SCALES.get(word.removesuffix("s"))
        if word == "and" and seen:
            continue
        if word in UNITS_AND_TENS:
            current, seen = current + UNITS_AND_TENS[word], True
        elif scale is not None and word.isascii() and (seen or len(words) == 1):
            current, seen = max(current, 1) * scale, True
            if scale > 100:
                total, current = total + current, 0
        else:
            return None
    return total + current if seen else None


def _han(text: str) -> Fraction | None:
    """Chinese numerals: 二十五, 一百零五, 三万."""
    if not 0 < len(text) <= 20 or not set(text) <= {*_HAN_DIGITS, *_HAN_UNITS, "万", "亿"}:
        return None
    total, section, digit = 0, 0, 0
    for character in text:
        if character in _HAN_DIGITS:
            digit = _HAN_DIGITS[character]
        elif character in _HAN_UNITS:
            section, digit = section + (digit or 1) * _HAN_UNITS[character], 0
        else:
            total, section, digit = (total + section + digit) * SCALES[character], 0, 0
    return Fraction(total + section + digit)
