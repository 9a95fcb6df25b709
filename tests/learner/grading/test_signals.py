"""Signals of groups: computed while later groups arrive, in the order of the rollouts, whatever an answer does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from learner.algorithm_list import ALGORITHMS
from learner.algorithms.base import Group
from learner.algorithms.grpo import signals
from learner.data.prompts import Prompt
from learner.grading.signals import SignalWorker, with_references
from services.errors import DataError
from tests.support import tiny_models


@pytest.fixture(scope="module")
def worker() -> Iterator[SignalWorker]:
    made = SignalWorker(signals, workers=2, time_limit_s=1.0)
    yield made
    made.close()


def rewards(worker: SignalWorker, *answers: str, reference: str = "4") -> list[float]:
    return [answer.signal.reward for answer in worker.submit(Group(reference, answers)).result() if answer.signal]


def test_rewards_come_in_the_order_of_the_answers(worker: SignalWorker) -> None:
    answers = ("so \\boxed{4}", "\\boxed{5}", "nothing", "\\boxed{4.0}", "\\boxed{5}")
    assert rewards(worker, *answers) == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_an_answer_that_takes_for_ever_earns_nothing_and_holds_up_nobody(worker: SignalWorker) -> None:
    assert rewards(worker, "\\boxed{9^{9^{9^{9}}}}", "\\boxed{7}", reference="7") == [0.0, 1.0]


def test_every_rollout_gets_the_signal_of_its_answer_among_its_group(worker: SignalWorker) -> None:
    rollouts = [
        tiny_models.rollout(index, [1], [token], sample)
        for index, tokens in enumerate([(4, 5), (6, 6), (9, 7)])
        for sample, token in enumerate(tokens)
    ]

    def text_of(tokens: NDArray[np.int32]) -> str:
        return f"\\boxed{{{tokens[0]}}}"

    found = list(worker.in_order(iter(rollouts), ["4", "6", "7"], text_of))
    assert [rollout for rollout, _ in found] == rollouts
    given = [answer.signal for _, answer in found if answer.signal]
    assert [signal.reward for signal in given] == [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert [signal.weight > 0 for signal in given] == [True, False, False, False, False, True]
    assert [(answer.class_, answer.won) for _, answer in found] == [
        (0, True), (1, False), (0, True), (0, True), (0, True), (1, False)
    ]  # fmt: skip


def test_answers_are_compared_also_for_an_algorithm_that_looks_at_no_texts() -> None:
    worker = SignalWorker(None, workers=1)
    try:
        found = worker.submit(Group("", ("\\boxed{3}", "I do not know.", "\\boxed{4}", "\\boxed{4.0}"))).result()
    finally:
        worker.close()
    assert [answer.signal for answer in found] == [None] * 4
    assert [answer.class_ for answer in found] == [0, None, 1, 1]
    assert [answer.won for answer in found] == [False, False, True, True]


def prompt(index: int, answer: str | None) -> Prompt:
    return Prompt(index, "?", answer, np.array([1], dtype=np.int32))


def test_prompts_without_a_reference_are_left_out_and_counted_where_there_are_rewards() -> None:
    prompts = [prompt(0, "1"), prompt(7, None), prompt(8, "2"), prompt(9, "")]
    with structlog.testing.capture_logs() as logs:
        assert with_references(ALGORITHMS["grpo"], prompts) == [prompts[0], prompts[2]]
    assert [(log["left_out"], log["first_row"]) for log in logs] == [(2, 7)]
    assert with_references(ALGORITHMS["nll"], prompts) == prompts


def test_data_without_any_reference_has_no_rewards() -> None:
    with pytest.raises(DataError, match="none of the 1 prompts"):
        with_references(ALGORITHMS["grpo"], [prompt(7, None)])
