import time

import pytest

from learner.grading.expressions import equal_expressions, parse


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("n(n+1)/2", r"\frac{n^2+n}{2}"), (r"\sin^2 x+\cos^2 x", "1"), (r"\frac{1}{\sqrt{n}}", r"\sqrt{1/n}"),
        ("0.5x", r"\frac{x}{2}"), (r"\frac{2}{2006!}", r"\frac{1}{1003 \cdot 2005!}"), (r"\sin 30^\circ", "0.5"),
        (r"\infty", r"\infty"),
        ("x>3", r"(3,\infty)"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
        (r"2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}"), (r"(-1)^{2n}", "1"), (r"\int_0^1 x dx", r"\frac12"),
    ],
)  # fmt: skip
def test_formulas_are_equal_by_their_values(answer: str, truth: str) -> None:
    assert equal_expressions(answer, truth)
    assert equal_expressions(truth, answer)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        (r"\frac{1}{2006!}", r"\frac{1}{2004!}"), (r"\frac{x}{2006!}", r"\frac{x}{2004!}"),
        (r"\sqrt{2}", r"\sqrt{2}+10^{-20}"), ("x^2", "x^3"), (r"\sqrt{x^2}", "x"), ("x", "y"), (r"\infty", r"-\infty"),
        (r"\frac{1}{0}", r"\frac{2}{0}"),
        (r"\begin{pmatrix}10^{-20}\end{pmatrix}", r"\begin{pmatrix}10^{-30}\end{pmatrix}"), ("5 @ 3", "5"),
        (r"1, 2, \ldots, n", "2"), (r"\begin{cases} 5 & x>0 \\ 3 & x<0 \end{cases}", "3"), ("((5)", "5"),
    ],
)  # fmt: skip
def test_what_differs_or_cannot_be_read_is_not_equal(answer: str, truth: str) -> None:
    assert not equal_expressions(answer, truth)
    assert not equal_expressions(truth, answer)


@pytest.mark.parametrize(
    "text",
    ["10^{99999999}", "1e99999999", "99999999!", r"\binom{99999999}{5}", "{" * 60 + "1" + "}" * 60, "1+" * 600 + "1"],
)
def test_what_is_too_large_is_not_computed(text: str) -> None:
    parse("1")  # imports the parser
    start = time.process_time()
    assert parse(text) is None
    assert time.process_time() - start < 1
