"""The queue benchmark on its smallest scale: a real server, both contenders, nothing lost."""

from __future__ import annotations

import json

import pytest

from benchmarks import queue


def test_both_contenders_pass_every_rollout_through(capsys: pytest.CaptureFixture[str]) -> None:
    queue.main(["--rollouts", "40", "--producers", "1", "3", "--repeats", "1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["lost"] == 0
    assert [(row["size"], row["producers"]) for row in result["rows"]] == [
        ("2kB", 1), ("2kB", 3), ("12kB", 1), ("12kB", 3)
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["ratio_to_bare_hiredis"] > 0
        payload = 4 * sum(queue.SIZES[row["size"]])
        assert payload < row["redis_bytes_each"] < 2 * payload + 4000


def test_a_lost_rollout_is_counted(redis_url: str) -> None:
    """One task more than could be leased: its answer is missing."""
    tasks = [queue.task_of(index, 4, 4) for index in (0, 1, 1)]
    assert queue.pass_through(redis_url, tasks[:2], 1).lost == 0
    assert queue.pass_bare(redis_url, tasks, 1).lost == 1
