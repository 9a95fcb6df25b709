from fractions import Fraction

import pytest

from learner.grading.exact_numbers import Number, equal_numbers, read_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,000", 1000), ("1 000 000", 10**6), ("05", 5), ("+5", 5), ("-.5", "-1/2"), ("2e3", 2000),
        (r"4.5 \times 10^{33}", 45 * 10**32), ("10^{-3}", "1/1000"), ("1e-19", Fraction(1, 10**19)),
        (r"\frac12", "1/2"), (r"-\frac{1}{3}", "-1/3"), (r"\frac{-3}{4}", "-3/4"), ("6/8", "3/4"),
        (r"1\frac{1}{2}", "3/2"), ("1 1/2", "3/2"), (r"0.\overline{3}", "1/3"), (r"0.1\overline{6}", "1/6"),
        (r"0.\dot{1}4285\dot{7}", "1/7"), (r"0.333\ldots", "1/3"), ("101_2", 5), ("2516_{8}", 1358), ("(2A)_{16}", 42),
        ("5th", 5), ("2.5 million", 2500000), (r"3\text{ dozen}", 36), ("minus twenty-five", -25),
        ("two hundred and five", 205), ("three quarters", "3/4"), ("two and a half", "5/2"), ("half", "1/2"),
        ("a dozen", 12), ("二十五", 25), ("一百零五", 105), ("三万", 30000), ("三分之二", "2/3"),
        ("百分之五十", "1/2"), ("负五", -5),
    ],
)  # fmt: skip
def test_numbers_are_read_exactly(text: str, value: int | str | Fraction) -> None:
    number = read_number(text)
    assert number is not None
    assert number.value == Fraction(value)


@pytest.mark.parametrize(
    "text",
    ["", "x", "--5", "1,23", "12:30", "1/0", "1e99999999", "10^{99999999}", "102_2", "5 apples", "two apples",
    "1 and 2", "a_1", "1.000.000", "minus", "third", "nan", "9" * 3000],
)  # fmt: skip
def test_anything_else_is_no_number(text: str) -> None:
    assert read_number(text) is None


def number(text: str) -> Number:
    found = read_number(text)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0.333333", "1/3"), ("1.60", "1.6"), ("2000", "2e3"), ("1e-19", "1.0000000001e-19"), ("6.0000001e23", "6.0e23")],
)
def test_decimals_agree_to_six_digits(given: str, expected: str) -> None:
    assert equal_numbers(number(given), number(expected))
    assert equal_numbers(number(expected), number(given))


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0.333", "1/3"), ("1000000", "1000000.5"), ("1234568.89", "1234567.89"), ("12345680", "12345678"), ("0", "1e-27"),
    ("1e-19", "1e-27"), ("0.999999", "1"), ("1/3", "333333/1000000")],
)  # fmt: skip
def test_nothing_is_equal_by_being_large_or_tiny(given: str, expected: str) -> None:
    assert not equal_numbers(number(given), number(expected))
    assert not equal_numbers(number(expected), number(given))
