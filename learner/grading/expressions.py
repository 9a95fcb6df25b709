r"""Compares two formulas: math-verify's parser reads them, sympy computes them, math-verify's rules compare the rest.

math-verify finds two numbers equal when their difference vanishes in 15 digits, so it takes 1/2006! for 1/2004!. It
reads a number out of a formula that it cannot parse, and strips units by a list of word endings. So its parser is
called for whole formulas only; numbers are computed to 50 digits here, and formulas in variables at points.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from learner.grading.exact_numbers import Number, equal_numbers

PRECISION = 50
AGREEING_DIGITS = 30
"""Of two values computed to PRECISION digits, so many must agree."""
MAX_EXPRESSION_CHARACTERS = 1_000
MAX_DEPTH = 40

_TOO_LARGE = re.compile(
    r"\^\s*\{?\s*\(?\s*[+-]?\s*\d{5,}|\d{5,}\s*\)?\s*!|\\binom\s*\{?\s*\d{5,}|\d[eE][+-]?\d{5,}|\{\s*\d{5,}\s*\}\s*!"
)
_NEVER_A_FORMULA = re.compile(
    r"\\(?:[lc]dots|begin\s*\{(?!\w*matrix)|text\s*\{[^{}]*[^A-Za-z{}\s][^{}]*\})|[?@#&]{2,}|'|\\approx"
)
_DEGREES = re.compile(r"((?:\d+\.?\d*|\.\d+)|[A-Za-z]|\))\s*\^\s*\\circ")
_MIXED = re.compile(r"(?<![\d.}A-Za-z])(\d+)\s*\\frac\s*\{(\d+)\}\s*\{(\d+)\}|(?<![\d.])(\d+)\s+(\d+)/(\d+)(?![\d.])")
_SCIENTIFIC = re.compile(r"(?<![A-Za-z\\\d.])((?:\d+\.?\d*|\.\d+))[eE]([+-]?\d{1,4})(?![A-Za-z\d])")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_POINTS = ("17/10", "29/7", "3/11", "103/10", "-13/7", "-5/3")
_COUNTS = ("3", "4", "7", "10", "23")
_COUNTED = {"n", "k", "m", "N", "K", "M"}


def equal_expressions(answer: str, truth: str) -> bool:
    """Whether two normalised formulas mean the same; False when either cannot be read as a whole."""
    given, expected = parse(answer), parse(truth)
    if given is None or expected is None:
        return False
    try:
        return _equal(given, expected)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception:  # sympy raises whatever its depths meet on a formula that makes no sense
        return False


def is_too_large(text: str) -> bool:
    """Whether it holds a power, a factorial or a binomial of numbers that nobody could compute."""
    return _TOO_LARGE.search(text) is not None


@lru_cache(maxsize=64)
def parse(text: str) -> Any | None:
    """The sympy object that a whole formula means, or None: what is cut off, has dots or is too large means nothing."""
    if (
        len(text) > MAX_EXPRESSION_CHARACTERS
        or is_too_large(text)
        or _NEVER_A_FORMULA.search(text)
        or _depth(text) > MAX_DEPTH
    ):
        return None
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify.parser import should_treat_as_complex

    config = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
    try:
        latex = normalize_latex(_for_sympy(text), config)
        is_real = not should_treat_as_complex(latex)
        return latex2sympy(
            latex,
            is_real=is_real,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),  # R^2 - r^2 is not 0
        )
    except MemoryError:
        raise
    except Exception:  # the parser raises a plain Exception, and sympy anything
        return None


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest


def _for_sympy(text: str) -> str:
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _DEGREES.sub(r"\\frac{\1 \\pi}{180}" if not text.count(")^") else r"\1 \\cdot \\frac{\\pi}{180}", text)
    text = _MIXED.sub(lambda m: rf"({m[1] or m[4]}+\frac{{{m[2] or m[5]}}}{{{m[3] or m[6]}}})", text)
    return _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)


def _equal(given: Any, expected: Any) -> bool:
    import sympy

    if isinstance(given, sympy.MatrixBase) and isinstance(expected, sympy.MatrixBase):
        return given.shape == expected.shape and all(map(_equal, given.flat(), expected.flat()))
    if isinstance(given, sympy.Expr) and isinstance(expected, sympy.Expr) and not _is_foreign(given, expected):
        found = _equal_values(given, expected)
        if found is not None:
            return found
    import math_verify

    # A set written as an inequality is the set: 1 <= x <= 3 answers [1, 3].
    return bool(math_verify.verify([expected], [given], allow_set_relation_comp=True, timeout_seconds=None))


def _is_foreign(*expressions: Any) -> bool:
    """Whether sympy cannot compute values of them: integrals, limits, unknown functions, sets within."""
    import sympy
    from sympy.core.function import AppliedUndef

    foreign = (
        AppliedUndef,
        sympy.Integral,
        sympy.Limit,
        sympy.Derivative,
        sympy.Sum,
        sympy.Product,
        sympy.Set,
        sympy.MatrixBase,
    )
    return any(expression.has(*foreign) for expression in expressions)


def _equal_values(given: Any, expected: Any) -> bool | None:
    """Compare by value: as numbers, or at points where both have one; None where there is no telling."""
    import sympy

    if given == expected:
        return given not in (sympy.nan, sympy.zoo)
    decimal = given.has(sympy.Float) or expected.has(sympy.Float)
    given, expected = _exact(given), _exact(expected)
    names = sorted(({symbol.name for symbol in each.free_symbols} for each in (given, expected)), key=len)
    # One of them shows that i is no variable: by I, or as a number that the other is with no other variable than i.
    if names == [set(), {"i"}] or any(each.doit().has(sympy.I) for each in (given, expected)):
        given, expected = (_with_imaginary_unit(each) for each in (given, expected))
    symbols = sorted(given.free_symbols | expected.free_symbols, key=str)
    if not symbols:
        real = _with_real_roots(given), _with_real_roots(expected)
        return _agree(given, expected, decimal) or (real != (given, expected) and _agree(*real, decimal))
    return _agree_everywhere(given, expected, symbols, decimal)


def _exact(expression: Any) -> Any:
    """With rationals for floats: those that were written; and with variables that are known by their names alone."""
    import sympy

    rationals = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
    return expression.xreplace(rationals | {symbol: sympy.Symbol(symbol.name) for symbol in expression.free_symbols})


def _with_imaginary_unit(expression: Any) -> Any:
    import sympy

    return expression.subs({symbol: sympy.I for symbol in expression.free_symbols if symbol.name == "i"})


def _with_real_roots(expression: Any) -> Any:
    """With -2 for the cube root of -8, which sympy takes for a complex number."""

    def has_real_root(part: Any) -> bool:
        return bool(
            part.is_Pow and part.exp.is_Rational and part.exp.q % 2 and part.exp.q > 1 and part.base.is_negative
        )

    return expression.replace(has_real_root, lambda part: (-1) ** part.exp.p * (-part.base) ** part.exp)


def _agree_everywhere(given: Any, expected: Any, symbols: list[Any], decimal: bool) -> bool | None:
    import sympy

    counted = all(symbol.name in _COUNTED for symbol in symbols)
    points, agreed = _COUNTS if counted else _POINTS, 0
    for shift in range(len(points)):
        values = {
            symbol: sympy.Rational(points[(shift + place) % len(points)]) + place
            for place, symbol in enumerate(symbols)
        }
        pair = given.xreplace(values), expected.xreplace(values)
        results = [sympy.N(expression, PRECISION) for expression in pair]
        if not all(value.is_number and value.is_finite for value in results):
            continue
        # Below zero the branches of roots and logarithms differ; only real values are compared there.
        if min(values.values()) < 0 and not all(value.is_real for value in results):
            continue
        if not _agree(*pair, decimal):
            return False
        agreed += 1
    return True if agreed >= 3 else None


def _agree(given: Any, expected: Any, decimal: bool) -> bool | None:
    """Whether two numbers are equal; with a decimal, to the digits of `equal_numbers`."""
    import sympy

    given, expected = given.doit(), expected.doit()
    if given == expected:
        return given not in (sympy.nan, sympy.zoo)
    if given.is_Rational and expected.is_Rational:
        return equal_numbers(_number(given, decimal), _number(expected, decimal))
    values = [sympy.N(number, PRECISION) for number in (given, expected)]
    if not all(value.is_number and value.is_finite for value in values):
        return None if any(value.is_infinite for value in values) else False
    if decimal and all(value.is_real for value in values):
        return equal_numbers(*(_number(sympy.Rational(str(value)), True) for value in values))
    difference, size = abs(values[0] - values[1]), max(abs(value) for value in values)
    return bool(difference <= size * sympy.Float(10) ** -AGREEING_DIGITS)


def _number(value: Any, decimal: bool) -> Number:
    return Number(Fraction(int(value.p), int(value.q)), decimal)
