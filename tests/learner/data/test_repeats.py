"""Questions that repeat another are found; questions that only look alike are not."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import structlog

from learner.data.prompts import Prompt
from learner.data.repeats import BenchmarkQuestions, Repeat, find_repeats, without_repeats
from services.errors import DataError

APPLES = "Tom has 3 apples and buys 5 more at the market near his house. How many apples does Tom have now?"
SHARED = Path("../shared/data")


def prompts(*questions: str, answers: tuple[str | None, ...] = ()) -> list[Prompt]:
    given = answers or (None,) * len(questions)
    return [
        Prompt(row, question, answer, np.array([1], dtype=np.int32), f"a.jsonl line {row + 1}")
        for row, (question, answer) in enumerate(zip(questions, given, strict=True))
    ]


@pytest.mark.parametrize(
    ("question", "exact"),
    [
        (APPLES, True),
        (
            "  tom has $3$ apples, and buys\n5 more at the market near his house! How many apples does Tom have now",
            True,
        ),
        (APPLES.replace("near his house", "near her house"), False),
        (APPLES.replace("now?", "now in total?"), False),
        (APPLES.replace("5 more", "6 more"), None),
        (APPLES.replace("3 apples and buys 5", "5 apples and buys 3"), None),
        ("Tom sells 3 of his 5 apples. How many are left?", None),
    ],
)
def test_what_repeats_a_question(question: str, exact: bool | None) -> None:
    expected = [] if exact is None else [Repeat(1, "a.jsonl line 1", exact)]
    assert find_repeats(prompts(APPLES, question), [], near=True) == expected
    assert find_repeats(prompts(APPLES, question), [], near=False) == (expected if exact else [])


@pytest.mark.parametrize(("one", "other"), [("47+85=", "47-85="), ("47+85=", "48+75="), ("x < 3", "x > 3"), ("", "?!")])
def test_short_questions_repeat_another_only_word_for_word(one: str, other: str) -> None:
    assert find_repeats(prompts(one, other), [], near=True) == []


def test_questions_with_other_answers_are_others_unless_a_benchmark_has_them() -> None:
    alike = prompts(APPLES, APPLES.replace("buys", "gets"), answers=("8", "2"))
    assert find_repeats(alike, [], near=True) == []
    found = find_repeats(alike, [BenchmarkQuestions("sums", ["1+1", APPLES])], near=True)
    assert [(one.index, one.of, one.exact, one.benchmark) for one in found] == [
        (0, "sums question 1", True, "sums"),
        (1, "sums question 1", False, "sums"),
    ]


def test_repeats_are_counted_left_out_or_refused() -> None:
    data = prompts(APPLES, "What is 2+2?", "what is 2 + 2", APPLES.replace("buys", "gets"))
    benchmarks = [BenchmarkQuestions("held", ["What is 2+2?"])]
    with structlog.testing.capture_logs() as logs:
        assert without_repeats(data, benchmarks, "keep") == data
        assert without_repeats(data, benchmarks, "leave_out") == data[:1]
        assert without_repeats(data[:1], benchmarks, "refuse") == data[:1]
    found = [(log["left_out"], log["same"], log["nearly_the_same"], log["in_benchmarks"]) for log in logs]
    assert found == [(0, 0, 0, {"held": 2}), (3, 0, 1, {"held": 2})]
    assert logs[1]["first"][0] == "a.jsonl line 2 repeats held question 0"
    with pytest.raises(DataError, match=r"a\.jsonl line 2 repeats held question 0, and 3 questions"):
        without_repeats(data, benchmarks, "refuse")
    with pytest.raises(DataError, match="every prompt is a question of a benchmark"):
        without_repeats(data[1:3], benchmarks, "leave_out")


def test_many_questions_without_numbers_are_not_compared_pair_by_pair() -> None:
    draw = np.random.default_rng(0)
    words = [f"w{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(300)]
    data = prompts(*(" ".join(draw.choice(words, 20)) for _ in range(1500)))
    started = time.process_time()
    assert find_repeats([*data, data[700]], [], near=True) == [Repeat(1500, "a.jsonl line 701", True)]
    assert time.process_time() - started < 30
