"""Learner and evaluator stop alike, and say alike why a task was given up."""

from __future__ import annotations

import signal

import pytest

from learner.wiring import stop_on_signals, why_given_up
from services.streams.connection import Keys, connect
from services.streams.tasks import TaskIssuer
from tests.learner.data.test_curriculum import curriculum
from tests.support.answering import reject


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_to_stop_and_the_second_would_end_the_process(
    number: signal.Signals, signal_handlers: None
) -> None:
    asked: list[bool] = []
    stop_on_signals(lambda: asked.append(True))
    signal.raise_signal(number)
    assert asked == [True]
    assert {signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)} == {signal.SIG_DFL}


def test_why_a_task_was_given_up_is_the_newest_reason(redis_url: str) -> None:
    keys = Keys("wiring")
    first, second = curriculum(2, 2, rounds=1).tasks_of(0)
    with connect(redis_url) as client:
        for task, reason in ((first, "too long"), (first, "out of memory"), (second, "a bad prompt")):
            TaskIssuer(client, keys).issue([task])
            reject(redis_url, keys, reason)
        assert why_given_up(client, keys, first.task_id) == "out of memory"
        assert why_given_up(client, keys, "another") == ""
