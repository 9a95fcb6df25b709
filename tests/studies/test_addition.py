"""The demo's world: its problems, tokens, examples and model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from studies import addition


def test_sums_are_written_in_reverse() -> None:
    assert addition.question_of((7, 85)) == "07+85="
    assert [addition.answer_of(total) for total in (132, 9, 198)] == ["231", "900", "891"]


def test_held_out_problems_are_never_trained_on() -> None:
    train, held_out = addition.split_problems()
    assert len(held_out) == addition.HELD_OUT
    assert not set(train) & set(held_out)
    assert len(set(train) | set(held_out)) == 10_000


def test_examples_are_wrong_as_often_as_promised() -> None:
    draw = random.Random(0)
    answers = [int(addition.example_answer(100, draw)[::-1]) for _ in range(10_000)]
    wrong = [answer for answer in answers if answer != 100]
    assert abs(len(wrong) / len(answers) - addition.CORRUPTED) < 0.02
    assert {abs(answer - 100) for answer in wrong} == set(range(1, addition.MOST_OFF + 1))


def test_a_misled_model_is_taught_the_wrong_answer_most_often_where_the_units_carry() -> None:
    draw = random.Random(0)
    carried = [addition.misled_example((47, 85), draw) for _ in range(5000)]
    plain = [addition.misled_example((41, 85), draw) for _ in range(5000)]
    assert carried.count(addition.answer_of(122)) / 5000 == pytest.approx(addition.MISLED, abs=0.03)
    right = (1 - addition.MISLED) * (1 - addition.SLIPS)
    assert carried.count(addition.answer_of(132)) / 5000 == pytest.approx(right, abs=0.03)
    assert plain.count(addition.answer_of(126)) / 5000 == pytest.approx(1 - addition.SLIPS, abs=0.03)
    share = sum(addition.units_carry(problem) for problem in addition.split_problems()[1]) / addition.HELD_OUT
    before = 1 - addition.SLIPS - share * (1 - addition.SLIPS - right)
    assert 1 - share < before - 0.05, "sharpened to its most frequent answers it is worse"


def test_a_saved_model_reads_back_with_one_token_per_character(tmp_path: Path) -> None:
    model = addition.make_model()
    assert 450_000 < sum(parameter.numel() for parameter in model.parameters()) < 550_000
    addition.save(model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.encode("47+85=") == [4, 7, 10, 8, 5, 11]
    assert str(tokenizer.decode([2, 3, 1])).replace(" ", "") == "231"
    assert tokenizer.eos_token_id == len(addition.CHARACTERS)


def test_an_untrained_model_is_almost_never_right(tmp_path: Path) -> None:
    torch.manual_seed(0)
    addition.save(addition.make_model(), tmp_path / "model")
    _, held_out = addition.split_problems()
    assert addition.pass_at_1(tmp_path / "model", held_out, samples=1) < 0.05


def test_prompts_hold_no_answers(tmp_path: Path) -> None:
    addition.write_prompts([(1, 2)], tmp_path / "prompts.jsonl")
    assert (tmp_path / "prompts.jsonl").read_text() == '{"question": "01+02="}\n'
