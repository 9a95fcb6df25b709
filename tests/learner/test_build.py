"""What the builder adds to the parts it puts together."""

from __future__ import annotations

from learner.build import why_given_up
from services.streams.connection import Keys, connect
from services.streams.tasks import TaskIssuer
from tests.support.answering import reject
from tests.support.curricula import curriculum


def test_why_a_task_was_given_up_is_the_newest_reason(redis_url: str) -> None:
    keys = Keys("build")
    first, second = curriculum(2, 2, rounds=1).tasks_of(0)
    with connect(redis_url) as client:
        for task, reason in ((first, "too long"), (first, "out of memory"), (second, "a bad prompt")):
            TaskIssuer(client, keys).issue([task])
            reject(redis_url, keys, reason)
        assert why_given_up(client, keys, first.task_id) == "out of memory"
        assert why_given_up(client, keys, "another") == ""
