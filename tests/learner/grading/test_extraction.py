import pytest

from learner.grading.extraction import TAIL_CHARACTERS, Candidate, find_candidate, unboxed_answer


@pytest.mark.parametrize(
    ("response", "candidate"),
    [
        (r"so \boxed{4}.", Candidate("4", "")), (r"\boxed{1} or \boxed{2}", Candidate("2", "1, 2")),
        (r"\boxed{1}, but no: \boxed{2}", Candidate("2", "")),
        (r"<think>\boxed{3}</think>It is 4.", Candidate(None, "It is 4.")),
        (r"<think>\boxed{3}</think>\boxed{4}", Candidate("4", "")), (r"<think>so \boxed{3}", Candidate("3", "")),
        (r"<think>\boxed{3}</think>", Candidate("3", "")), (r"\boxed{3} <answer>4</answer>", Candidate(None, "4")),
        (r"<answer>\boxed{4}</answer> or 5", Candidate("4", "")),
        ("\\boxed{\\Delta E}\n**Answer: D**", Candidate(None, "D")),
        ("It is 4.<|im_end|>", Candidate(None, "It is 4.")), ("", Candidate(None, "")),
    ],
)  # fmt: skip
def test_what_decides_the_grade_of_a_response(response: str, candidate: Candidate) -> None:
    assert find_candidate(response) == candidate


def test_what_is_sent_to_a_worker_is_short() -> None:
    assert find_candidate("1" * 100_000).tail == "1" * TAIL_CHARACTERS
    assert find_candidate("1" * 100_000 + r"\boxed{2}").tail == ""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("**Answer:** `73`", "73"), ("24 + 48 = 72\n#### 72\nand so on", "72"), ("The answer is 5 because 2+3=5.", "5"),
        ("So she has **5** apples left.", "5 apples"), ("He has 5+99=104 games after 3 years", "104 games"),
        ("It cannot be 4", "cannot be 4"),
        ("It is at least 4.", "at least 4"), ("She pays $18 every day.", "$18"),
        ("We get $x = \\frac{1}{2}$ here.", r"x = \frac{1}{2}"), ("Final answer:\n\n73", "73"), ("答案是：25。", "25"),
        ("x = 12 cm", "x = 12 cm"), ("Evelyn", "Evelyn"), ("2:30 pm", "2:30 pm"),
        ("$10 + $5 = $15 in all.", "$15"), ("I do not know.", None), ("", None), ("What now?", None),
    ],
)  # fmt: skip
def test_an_answer_without_a_box_is_what_is_said_last(text: str, answer: str | None) -> None:
    assert unboxed_answer(text) == answer
