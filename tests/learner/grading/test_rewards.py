from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from learner.data.prompts import Prompt
from learner.grading.rewards import Rewards, check_answers
from services.errors import DataError


@pytest.fixture(scope="module")
def rewards() -> Iterator[Rewards]:
    made = Rewards(workers=2, time_limit_s=1.0)
    yield made
    made.close()


def test_rewards_come_in_the_order_of_submission(rewards: Rewards) -> None:
    for response in ("so \\boxed{4}", "\\boxed{5}", "nothing", "\\boxed{4.0}", "\\boxed{5}"):
        rewards.submit(response, "4")
    assert rewards.collect() == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert rewards.collect() == []


def test_an_answer_that_takes_for_ever_earns_nothing_and_holds_up_nobody(rewards: Rewards) -> None:
    rewards.submit("\\boxed{9^{9^{9^{9}}}}", "7")
    rewards.submit("\\boxed{7}", "7")
    assert rewards.collect() == [0.0, 1.0]


def prompt(index: int, answer: str | None) -> Prompt:
    return Prompt(index, "?", answer, np.array([1], dtype=np.int32))


def test_a_prompt_without_an_answer_has_no_reward() -> None:
    check_answers([prompt(0, "1")])
    with pytest.raises(DataError, match=r"1 of 2 .* row 7"):
        check_answers([prompt(0, "1"), prompt(7, None)])
