from fractions import Fraction

import pytest

from learner.grading.words.number_words import spelled_out


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("zero", 0), ("twenty-five", 25), ("one hundred", 100), ("two hundred and five", 205),
        ("three thousand two hundred", 3200),
        ("a dozen", 12), ("half", "1/2"), ("a third", "1/3"), ("three quarters", "3/4"), ("two and a half", "5/2"),
        ("one million two", 1000002), ("二十五", 25), ("十", 10), ("一百零五", 105), ("三万", 30000), ("两千", 2000),
    ],
)  # fmt: skip
def test_words_are_numbers(text: str, value: int | str) -> None:
    assert spelled_out(text) == Fraction(value)


@pytest.mark.parametrize(
    "text", ["", "third", "and", "five apples", "five or six", "the five", "一个", "a", "five " * 30]
)
def test_other_words_are_none(text: str) -> None:
    assert spelled_out(text) is None
