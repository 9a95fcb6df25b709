import pytest

from learner.data.answers import final_answer, last_boxed


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
