import pytest

from learner.grading.notation import (
    as_written,
    ascii_notation,
    normalised,
    plain_words,
    tidy_latex,
    unwrapped,
    without_markdown,
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("**73**", "73"), ("***8***", "8"), ("_73_", "73"), ("__Answer:__ 9", "Answer: 9"), ("`73`", "73"),
        ("Answer: 73**", "Answer: 73"),
        ("#### **73**", "73"), ("> 12", "12"), ("- item", "item"), ("```\n15\n```", "\n15\n"), ("2*3*4", "2*3*4"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("a_1 + b_1", "a_1 + b_1"), ("x_{1}_2", "x_{1}_2"), ("2**3", "2^3"), ("*", "*"), ("", ""),
    ],
)  # fmt: skip
def test_markdown_goes_and_mathematics_stays(text: str, plain: str) -> None:
    assert without_markdown(text) == plain


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("２５", "25"), ("٢٥", "25"), ("۱۲", "12"), ("२५", "25"), ("٣٫٥", "3.5"), ("١٬٠٠٠", "1000"),
        ("½", r"\frac{1}{2}"), ("3½", r"3\frac{1}{2}"),
        ("√2", r"\sqrt{2}"), ("√(x+1)", r"\sqrt{x+1}"), ("∛8", r"\sqrt[3]{8}"), ("x²", "x^{2}"), ("10⁻³", "10^{-3}"),
        ("a₁", "a_{1}"), ("–5", "-5"), ("−5", "-5"),
        ("≥3", r"\ge 3"), ("（1，2）", "(1,2)"), ("5。", "5."), ("π", r"\pi "), ("90°", r"90^\circ "),
        ("0.3̅", r"0.\overline{3}"), ("a\u200b\u202eb", "ab"), ("50％", "50%"), ("plain", "plain"),
    ],
)  # fmt: skip
def test_unicode_becomes_ascii_and_latex(text: str, plain: str) -> None:
    assert ascii_notation(text) == plain


def test_latex_has_one_command_for_one_thing() -> None:
    assert tidy_latex(r"\dfrac{1}{2}\,\mathrm{cm}") == r"\frac{1}{2} \text{cm}"
    assert tidy_latex(r"1{,}000 \geqslant x") == r"1,000 \ge x"
    assert tidy_latex(r"\left(1,\;2\right)") == "(1, 2)"
    assert tidy_latex(r"\text{13}") == "13"
    assert tidy_latex(r"\begin{pmatrix}1\\ 2\end{pmatrix}") == r"\begin{pmatrix}1\\ 2\end{pmatrix}"


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("{5}.", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("{1}{2}", "{1}{2}"),
        ('"yes"', "yes"),
        (".5", ".5"),
        ("5,", "5"),
        ("", ""),
    ],
)
def test_what_encloses_everything_goes(text: str, inside: str) -> None:
    assert unwrapped(text) == inside


def test_a_lone_dollar_before_a_number_is_a_currency() -> None:
    assert normalised("$5") == r"\$5"
    assert normalised("$5$") == "5"
    assert normalised("$B") == "B"


def test_words_are_taken_out_of_their_command() -> None:
    assert plain_words(r"5\text{ cm}^2") == "5 cm ^2"


def test_two_spellings_of_one_formula_have_the_same_characters() -> None:
    assert as_written(r"\frac{1}{2} x") == as_written(r"\frac12x")
    assert as_written("1 1/2") != as_written("11/2")
