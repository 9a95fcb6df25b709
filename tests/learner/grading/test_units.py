import pytest

from learner.grading.notation import normalised
from learner.grading.units import Unit, parse_unit, split_unit


def unit(text: str) -> Unit:
    found = parse_unit(text)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "value", "same_as"),
    [
        (r"12\text{ cm}^2", "12", r"\text{square centimeters}"), (r"10\frac{\text{m}}{\text{s}}", "10", "m/s"),
        ("40 mph", "40", "miles per hour"), ("€5", "5", "euros"), (r"\$5.00", "5.00", "USD"),
        ("2.5 million dollars", "2.5 million", "dollars"), ("-€5", "-5", "EUR"), ("20℃", "20", "degrees Celsius"),
        ("25 kg·m/s^2", "25", "N"), (r"\text{36 hours}", "36", "h"), ("10 litres of water", "10", "L"),
        (r"3\text{ p.m.}", "3", "pm"), (r"6\frac{1}{6}\text{ feet}", r"6\frac{1}{6}", "ft"),
        ("3.5 平方厘米", "3.5", r"\text{cm}^2"), ("25元", "25", "yuan"), ("$18 per day", "18", r"\$/day"),
        ("864 \\mbox{ inches}^2", "864", "square inches"),
    ],
)  # fmt: skip
def test_a_quantity_is_a_number_and_a_unit(text: str, value: str, same_as: str) -> None:
    assert split_unit(normalised(text)) == (value, unit(normalised(same_as)))


@pytest.mark.parametrize(
    "text",
    [r"5\text{ or more}", r"5 \text{ is impossible}", r"5\text{ times}", r"\text{not } 5", "2x", "5 out of 6",
    r"5\text{ squared}", r"\text{Evelyn}", r"n \text{ is odd}", "odd numbers", r"5\text{ minus}", "5", ""],
)  # fmt: skip
def test_words_that_change_the_meaning_are_no_units(text: str) -> None:
    assert split_unit(normalised(text)) == (normalised(text), None)


def test_a_single_letter_may_be_a_variable() -> None:
    assert split_unit("5m")[1] == unit("m")
    assert split_unit("5m", letters=False) == ("5m", None)
    assert split_unit(r"5\text{ m}", letters=False)[1] == unit("m")
    assert split_unit("2g/L", letters=False) == ("2g/L", None)


def test_units_of_one_dimension_agree() -> None:
    assert unit("km").agrees_with(unit("miles"))
    assert unit("ways").agrees_with(unit("dogs"))
    assert unit("square units").agrees_with(unit("ways"))
    assert not unit("dogs").agrees_with(unit("cats"))
    assert not unit("ways").agrees_with(unit("cm"))
    assert not unit(r"\text{cm}^2").agrees_with(unit(r"\text{cm}^3"))
    assert not unit("am").agrees_with(unit("pm"))


def test_a_value_in_base_units() -> None:
    assert unit("cm").in_base_units("12") == r"(12) \cdot \frac{1}{100}"
    assert unit("degrees").in_base_units("90") == r"(90) \cdot \frac{1}{180} \cdot \pi"
    assert unit("m").in_base_units("12") == "12"
