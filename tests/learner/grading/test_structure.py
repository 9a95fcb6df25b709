import pytest

from learner.grading.structure import Listed, approximations, read_option, sides, split_list, value_of, without_lead


@pytest.mark.parametrize(
    ("text", "opening", "parts", "closing"),
    [
        ("1, 2 and 3", "", ("1", "2", "3"), ""), (r"6, 8\text{, and }10", "", ("6", "8", "10"), ""),
        (r"\{1, 2\}", "{", ("1", "2"), "}"), ("(1, (2, 3)]", "(", ("1", "(2, 3)"), "]"),
        ("[1,2)", "[", ("1", "2"), ")"),
        (r"2 \pm \sqrt{3}", "", (r"2 + \sqrt{3}", r"2 - \sqrt{3}"), ""), (r"\pm 3", "", ("3", "- 3"), ""),
        ("(3,4),(1,2)", "", ("(3,4)", "(1,2)"), ""), (r"\{5\}", "{", ("5",), "}"), ("1和2", "", ("1", "2"), ""),
        ("1;2", "", ("1", "2"), ""),
    ],
)  # fmt: skip
def test_lists_fall_into_their_parts(text: str, opening: str, parts: tuple[str, ...], closing: str) -> None:
    assert split_list(text) == Listed(opening, parts, closing)


@pytest.mark.parametrize(
    "text", ["x+1", "(x+1)", "(x+1)(x-1)", r"(1,2) \cup (3,4)", "f(x,y)", "(x,y)=(1,2)", "", "1," * 100]
)
def test_one_expression_is_no_list(text: str) -> None:
    assert split_list(text) is None


def test_equations_have_sides_and_say_a_value() -> None:
    assert sides("x = 5") == ["x", "5"]
    assert sides(r"x \in [1,3]") == ["x", "[1,3]"]
    assert sides(r"x \ge 5") == [r"x \ge 5"]
    assert sides("x = 1, y = 2") == ["x = 1, y = 2"]
    assert value_of("2 + 3 = 5", named=False) == "5"
    assert value_of("2 = x", named=False) == "2"
    assert value_of("x + y = 5", named=True) == "x + y = 5"
    assert value_of(r"\angle ABC = 30", named=True) == "30"


def test_what_stands_before_an_answer_goes_or_becomes_a_sign() -> None:
    assert without_lead(r"\text{the answer is } 5") == "5"
    assert without_lead(r"\approx 8.24") == "8.24"
    assert without_lead(r"\text{at least } 5") == r"\ge 5"
    assert without_lead(r"5\text{ or more}") == r"\ge 5"
    assert without_lead(r"\text{not } 5") == r"\text{not } 5"
    assert approximations(r"\frac{5}{3} \approx 1.67") == [r"\frac{5}{3}", "1.67"]


@pytest.mark.parametrize(
    ("text", "option"),
    [(r"\text{(C) } 12", ("C", "12")), ("C", ("C", "")), ("B.", ("B", "")), ("(b)", ("B", "")), ("Option D", ("D", "")),
    ("A: 5", ("A", "5")), ("12", None), ("(a)+b", None), ("AB", None), ("None of the above", None), ("x", None)],
)  # fmt: skip
def test_options_have_a_letter_and_a_text(text: str, option: tuple[str, str] | None) -> None:
    assert read_option(text) == option
