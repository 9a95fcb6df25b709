import pytest

from learner.data.answers import final_answer, is_checkable, last_boxed, last_boxed_list, stated_answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\boxed{3} + 1}", r"\boxed{3} + 1"),
        (r"\boxed{7} and then \boxed{12", "7"),
        (r"\boxed{\boxed{3} + ", "3"),
        (r"\boxed{12", None),
        (r"\boxed{5} within \boxed{}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {4} } }", "4"),
        (r"\fbox{4}", "4"),
        (r"json says \\boxed{4}", "4"),
        ("no box at all", None),
        ("", None),
    ],
)
def test_last_complete_box_is_found(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


def test_an_unclosed_box_repeated_is_read_in_one_pass() -> None:
    assert last_boxed(r"\boxed{" * 200_000) is None


def test_final_answer_of_a_solution() -> None:
    assert final_answer("48/2 = <<48/2=24>>24\n#### 1,072") == "1,072"
    assert final_answer(r"hence \boxed{60}. ~coolmath") == "60"
    assert final_answer(" 27 ") == "27"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"x is \boxed{1} or \boxed{2}.", "1, 2"),
        (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$", "1, 2, 3"),
        (r"\boxed{5} \boxed{5}", "5"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{1}, then \boxed{2} and \boxed{3}", "2, 3"),
        ("no box", None),
    ],
)
def test_boxes_in_a_row_are_a_list(text: str, content: str | None) -> None:
    assert last_boxed_list(text) == content


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the final answer is 42. I hope it is correct.", "42"),
        ("Final answer:\n\n73", "73"),
        ("The answer is 3. No, the answer is 4.", "4"),
        ("The answer: $x = 5$", "$x = 5$"),
        ("The answer is\n\\[\n\\frac{1}{2}\n\\]", r"\frac{1}{2}"),
        ("The answer is 4.5 km.", "4.5 km"),
        ("答案是：25。", "25"),
        ("I do not know.", None),
        ("They answered 5 questions.", None),
    ],
)
def test_a_stated_answer_is_what_follows_until_the_sentence_ends(text: str, answer: str | None) -> None:
    found = stated_answer(text)
    assert (found.strip() if found else found) == answer


@pytest.mark.parametrize(
    "text",
    ["proof", "Proof.", "The proof is complete.", "notfound", "not found", "N/A", "nan", "null", "None",
    "see the solution", "-", "", "omitted",
     "Suppose it is not. Then it is even. Then so is the other. A contradiction.", "word " * 50],
)  # fmt: skip
def test_what_cannot_be_checked_is_no_reference(text: str) -> None:
    assert not is_checkable(text)
    assert final_answer(text) is None


@pytest.mark.parametrize(
    "text",
    ["27", r"\text{none}", "no solution", "0", r"\emptyset", "x", "$f(x)=ax+b$, where $b$ is an arbitrary integer"],
)
def test_what_can_be_checked_is_a_reference(text: str) -> None:
    assert final_answer(text) == text


def test_a_worked_solution_that_states_no_answer_has_none() -> None:
    assert final_answer("Suppose it is p/q in lowest terms. Then p is even, a contradiction.", worked=True) is None
    assert final_answer("long", worked=True) is None
    assert final_answer("12 cm", worked=True) == "12 cm"
    assert final_answer("We add them. The answer is 12.", worked=True) == "12"
    assert final_answer(r"We add them: \boxed{12}", worked=True) == "12"
