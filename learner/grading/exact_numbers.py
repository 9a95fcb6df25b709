r"""Reads numbers exactly, in digits and in words, and says when two of them are equal.

read_number("1,000")                    1000
read_number(r"1\frac{1}{2}")            3/2
read_number("2.5 million")              2500000
read_number("minus twenty-five")        -25
read_number(r"0.1\overline{6}")         1/6
read_number("101_2")                    5
read_number("0xFF")                     255
read_number("1_000")                    1000
read_number("1.234,50")                 1234.5
read_number("14 (fourteen)")            14
read_number("x+1")                      None
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from learner.grading.notation import plain_words
from learner.grading.words.number_words import SCALES, spelled_out

DIGITS = 6
"""Of two numbers one of which is a decimal, so many digits after the point must agree; of those below 1 so many digits
after the leading zeros."""
MAX_EXPONENT_DIGITS = 4
"""A number with a longer power of ten is not computed."""

_SIGN = {"负": "-", "負": "-", "minus": "-", "negative": "-", "سالب": "-", "ناقص": "-", "-": "-", "+": ""}

_UNSIGNED = r"(?:\d{1,3}(?:(?:,|\\?_)\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_POWER_OF_TEN = rf"10\s*\^\s*\{{?\s*([+-]?\d{{1,{MAX_EXPONENT_DIGITS}}})\s*\}}?"
_DECIMAL = re.compile(
    rf"({_UNSIGNED})(?:[eE]([+-]?\d{{1,{MAX_EXPONENT_DIGITS}}})|\s*(?:\\times|\\cdot|\*|x)\s*{_POWER_OF_TEN})?",
    re.ASCII,
)
_ONLY_POWER = re.compile(_POWER_OF_TEN, re.ASCII)
_ARGUMENT = rf"(?:\{{\s*(-?\s*{_UNSIGNED})\s*\}}|(\d))"
_FRACTION = re.compile(rf"\\frac\s*{_ARGUMENT}\s*{_ARGUMENT}", re.ASCII)
_SLASHED = re.compile(rf"\(?\s*(-?{_UNSIGNED})\s*\)?\s*/\s*\(?\s*(-?{_UNSIGNED})\s*\)?", re.ASCII)
_MIXED = re.compile(r"(\d+)(?:\s*(?=\\frac)|\s+(?=\d)|\s+and\s+|-(?=\d+/))(\\frac.+|\d+\s*/\s*\d+)", re.ASCII)
_MULTIPLE = re.compile(r"\(([^()]+)\) \\cdot (\\frac\{\d+\}\{\d+\})", re.ASCII)
_REPEATING = re.compile(
    r"(\d*)\.(\d*)(?:\\(?:overline|bar)\s*\{?(\d+)\}?|((?:\\dot\s*\{?\d\}?\d*)+)|\((\d+)\))", re.ASCII
)
_GOES_ON = re.compile(r"(\d*)\.(\d*?)(\d{1,6}?)\3+\s*\\[lc]dots", re.ASCII)
_EUROPEAN = re.compile(r"(\d{1,3}(?:[. ]\d{3})+),(\d+)|(\d{1,3}(?:'\d{3})+(?:\.\d+)?)", re.ASCII)
_RESTATED = re.compile(r"(.+?)\s*\(([^()]+)\)")
_ABBREVIATED = re.compile(r"(.*\d)(k|M|bn)")
_BASED = re.compile(r"\(?([0-9A-Za-z]+)\)?\s*_\s*\{?\s*(\d{1,2}|two|eight|ten|sixteen)\s*\}?", re.ASCII)
_PREFIXED = re.compile(r"0(?:[xX]([0-9A-Fa-f]+)|[bB]([01]+)|[oO]([0-7]+))", re.ASCII)
_ORDINAL = re.compile(r"(\d+)\s*\^?\s*\{?\s*(?:st|nd|rd|th)\s*\}?", re.ASCII)
_ABBREVIATIONS = {"k": 10**3, "M": 10**6, "bn": 10**9}
_SCALED = re.compile(rf"(.+?)\s*({'|'.join(sorted(SCALES, key=len, reverse=True))})(?:s|ات)?")


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value, and how it was written."""

    value: Fraction
    decimal: bool = False
    """Written with a point: perhaps rounded."""
    scientific: bool = False
    """Written as a decimal times a power of ten."""

    def __neg__(self) -> Number:
        return replace(self, value=-self.value)


def equal_numbers(given: Number, expected: Number) -> bool:
    """Exactly, unless one is a decimal: then to DIGITS digits. Large integers never agree "almost".

    0.333333 = 1/3    0.333 != 1/3    1000000 != 1000000.5    2.88e-19 != 1.3e-27
    """
    difference = abs(given.value - expected.value)
    if difference == 0 or not (given.decimal or expected.decimal):
        return difference == 0
    exponent = _exponent(max(abs(given.value), abs(expected.value))) + 1
    if not (given.scientific and expected.scientific):
        exponent = min(exponent, 0)
    return difference < Fraction(10) ** (exponent - DIGITS)


def _exponent(value: Fraction) -> int:
    """Of the leading digit: 0 for 1 to 9.99, -1 for 0.1."""
    return (Decimal(value.numerator) / Decimal(value.denominator)).adjusted()


def read_number(text: str) -> Number | None:
    """The number that a normalised text consists of; None if there is anything else in it."""
    text = plain_words(text).strip()
    for word, sign in _SIGN.items():
        if text.lower().startswith(word):
            inner = read_number(text[len(word) :]) if text[len(word) :].strip()[:1] not in ("-", "+", "") else None
            return -inner if inner and sign else inner
    if len(text) > 2_000 or not text:
        return None
    readers = (
        _decimal, _european, _fraction, _mixed, _repeating, _based, _prefixed, _ordinal, _scaled, _spelled_out,
        _multiple, _restated,
    )  # fmt: skip
    return next((found for reader in readers if (found := reader(text)) is not None), None)


def _decimal(text: str) -> Number | None:
    match = _DECIMAL.fullmatch(text)
    if match is None:
        power = _ONLY_POWER.fullmatch(text)
        return Number(Fraction(10) ** int(power[1])) if power else None
    digits = re.sub(r"[, \\_]", "", match[1])
    exponent = match[2] or match[3]
    return Number(
        Fraction(digits) * Fraction(10) ** int(exponent or 0), "." in digits, exponent is not None and "." in digits
    )


def _european(text: str) -> Number | None:
    """With a decimal comma after groups of three digits, or with apostrophes between these: 1.234,50 and 1'234.50."""
    match = _EUROPEAN.fullmatch(text)
    if match is None:
        return None
    return _decimal(re.sub("[. ]", "", match[1]) + "." + match[2] if match[1] else match[3].replace("'", ""))


def _restated(text: str) -> Number | None:
    """A number in digits and in words: 14 (fourteen)."""
    match = _RESTATED.fullmatch(text)
    if match is None or match[1][-1].isdigit() == match[2][-1].isdigit():
        return None
    number, again = read_number(match[1]), read_number(match[2])
    return number if number is not None and again is not None and number.value == again.value else None


def _fraction(text: str) -> Number | None:
    match = _FRACTION.fullmatch(text) or _SLASHED.fullmatch(text)
    if match is None:
        return None
    above, below = (read_number(part) for part in match.groups() if part is not None)
    if above is None or below is None or below.value == 0:
        return None
    return Number(above.value / below.value, above.decimal or below.decimal)


def _mixed(text: str) -> Number | None:
    match = _MIXED.fullmatch(text)
    part = _fraction(match[2]) if match else None
    if match is None or part is None or not 0 < part.value < 1:
        return None
    return Number(int(match[1]) + part.value)


def _multiple(text: str) -> Number | None:
    """A number in another unit, as `Unit.in_base_units` writes it: (12) \\cdot \\frac{1}{100}."""
    match = _MULTIPLE.fullmatch(text)
    if match is None:
        return None
    number, factor = read_number(match[1]), _fraction(match[2])
    return Number(number.value * factor.value, number.decimal) if number and factor else None


def _repeating(text: str) -> Number | None:
    match = _REPEATING.fullmatch(text) or _GOES_ON.fullmatch(text)
    if match is None:
        return None
    repeated = re.sub(r"\D", "", next(group for group in match.groups()[2:] if group))
    if len(match[2]) + len(repeated) > 100 or (match.re is _GOES_ON and not text.count(repeated) > 1):
        return None
    shift = 10 ** len(match[2])
    return Number(
        Fraction(int((match[1] or "0") + match[2])) / shift + Fraction(int(repeated), (10 ** len(repeated) - 1) * shift)
    )


def _based(text: str) -> Number | None:
    """A numeral with its base: 101_2, (2A)_{16}. Only one with all of its digits below the base."""
    match = _BASED.fullmatch(text)
    if match is None or not (match[1][0].isdigit() or (len(match[1]) > 1 and match[1].isupper())):
        return None
    base = {"two": 2, "eight": 8, "ten": 10, "sixteen": 16}.get(match[2]) or int(match[2])
    try:
        return Number(Fraction(int(match[1], base))) if 2 <= base <= 36 and len(match[1]) <= 200 else None
    except ValueError:
        return None


def _prefixed(text: str) -> Number | None:
    """A numeral as programs write it: 0xFF, 0b101, 0o17."""
    match = _PREFIXED.fullmatch(text)
    return Number(Fraction(int(text, 0))) if match and len(text) <= 200 else None


def _ordinal(text: str) -> Number | None:
    match = _ORDINAL.fullmatch(text)
    return Number(Fraction(int(match[1]))) if match else None


def _scaled(text: str) -> Number | None:
    """Digits with a word for their scale: 2.5 million, 3 dozen, 2.5万, 15k, 1.5M."""
    abbreviated = _ABBREVIATED.fullmatch(text)
    if abbreviated:
        number = _decimal(abbreviated[1])
        return Number(number.value * _ABBREVIATIONS[abbreviated[2]], number.decimal) if number else None
    match = _SCALED.fullmatch(text.lower())
    if match is None or not re.search(r"\d", match[1]):
        return None
    number = read_number(match[1])
    return Number(number.value * SCALES[match[2]], number.decimal) if number else None


def _spelled_out(text: str) -> Number | None:
    """Words, and Chinese fractions: 二分之一, 百分之五十."""
    below, parts, above = text.partition("分之")
    if not parts:
        value = spelled_out(text)
        return None if value is None else Number(value)
    denominator = Number(Fraction(100)) if below == "百" else read_number(below)
    numerator = read_number(above)
    if numerator is None or denominator is None or denominator.value == 0:
        return None
    return Number(numerator.value / denominator.value, numerator.decimal)
