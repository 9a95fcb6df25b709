"""Tasks and the rollouts that a collector must yield for them."""

from __future__ import annotations

from collections.abc import Iterator

from services.contracts import Rollout, Task


def tasks_of(round_: int, count: int = 4, samples: int = 2) -> list[Task]:
    return [
        Task(
            task_id=f"r{round_:06d}-{index:05d}",
            round=round_,
            position=index,
            prompt_tokens=[round_, index, 7],
            temperature=0.6,
            max_response_tokens=8,
            samples=samples,
            min_weight_version=max(0, round_ - 1),
        )
        for index in range(count)
    ]


def ids(rollouts: Iterator[Rollout]) -> list[str]:
    return [rollout.rollout_id for rollout in rollouts]


def expected(round_: int, count: int = 4) -> list[str]:
    return [f"r{round_:06d}-{index:05d}.{sample}" for index in range(count) for sample in range(2)]
