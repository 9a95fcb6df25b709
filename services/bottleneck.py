"""Finds which side of a run is short of work, how many generators would balance it, and how long it will take.

All of it rests on the newest regular rounds: the first one pays for the start, and one in which the run was paused or a
part was started again says nothing of the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, median
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from services.contracts import GeneratorStatus, RoundMetrics

BottleneckKind = Literal["unknown", "generation", "training", "overlap", "balanced"]
"""`overlap`: both sides wait for each other, so that more of either would not help."""

ROUNDS_CONSIDERED = 20
"""The newest rounds that are looked at."""
ROUNDS_NEEDED = 3
"""Fewer regular rounds than this say nothing about what limits the run."""
LOOKS_NEEDED = 3
"""Likewise for looks at the generators."""
ACCOUNTED = 0.5
"""A round of whose time the learner trained and waited for rollouts for a smaller share was not a regular one."""
WAIT_TOLERATED = 0.10
"""Share of the learner's time that may go to waiting before generation counts as the bottleneck."""
IDLE_TOLERATED = 0.30
"""Share of the generators' time without generating that is tolerated before training counts as the bottleneck."""
HEADROOM = 1.1
"""Generators to keep beyond what their busy time needs, so that the learner never waits for the slowest."""
MAX_GROWTH = 2.0
"""At most so many times the present number is suggested at once: what a generator adds is seen, not computed."""


class Bottleneck(BaseModel):
    """What limits the run now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: BottleneckKind
    reason: str
    """One sentence with the numbers that it rests on."""
    suggested_generators: int | None = Field(default=None, ge=1)
    """None when nothing can be said, or when the number is right."""
    learner_wait_ratio: float | None = None
    """Share of those rounds' wall time that the learner waited for rollouts; 0 .. 1."""
    generator_idle_ratio: float | None = None
    """Mean over the same rounds of the share of living generators that generated nothing; 0 .. 1."""


class Look(NamedTuple):
    """One look at the generators, as recorded every few seconds."""

    time: float
    """Unix seconds."""
    busy: float
    """Share of the living ones that generate."""


def find_bottleneck(
    rounds: Sequence[RoundMetrics],
    generators: Sequence[GeneratorStatus],
    looks: Sequence[Look],
    *,
    generators_target: int | None = None,
    most_generators: int | None = None,
) -> Bottleneck:
    """What limits a run that is active, by the newest of `rounds` and by the `looks` since they began.

    With n generators and a learner that waits the share w of its time, generation takes 1 / (1 - w) times as long
    as training: n / (1 - w) generators would keep the learner busy. With generators that idle the share i, n (1 - i)
    are enough, plus headroom. Nothing is suggested that is there or wanted already, or more than `most_generators`, of
    which the machine has room for.
    """
    living = sum(not status.lost for status in generators)
    if not living:
        return Bottleneck(kind="unknown", reason="no generator is alive")
    recent = regular_rounds(rounds)
    since = [look for look in looks if recent and look.time >= recent[0].time - recent[0].round_s]
    if len(recent) < ROUNDS_NEEDED or len(since) < LOOKS_NEEDED:
        return Bottleneck(kind="unknown", reason=f"known after {ROUNDS_NEEDED} rounds without a start or a pause")
    wait = _share(sum(metrics.learner_wait_s for metrics in recent), sum(metrics.round_s for metrics in recent))
    idle = _share(1.0 - mean(look.busy for look in since), 1.0)
    kind, reason, count = _weigh(wait, idle, living)
    count = count if most_generators is None else min(count, max(living, most_generators))
    return Bottleneck(
        kind=kind,
        reason=reason,
        suggested_generators=None if count in (living, generators_target) else count,
        learner_wait_ratio=wait,
        generator_idle_ratio=idle,
    )


def regular_rounds(rounds: Sequence[RoundMetrics]) -> list[RoundMetrics]:
    """The newest ones after the last that was not regular, at most ROUNDS_CONSIDERED."""
    newest: list[RoundMetrics] = []
    for metrics in reversed(rounds[-ROUNDS_CONSIDERED:]):
        if metrics.round == 0 or metrics.train_s + metrics.learner_wait_s < ACCOUNTED * metrics.round_s:
            break
        newest.append(metrics)
    return newest[::-1]


def seconds_left(rounds: Sequence[RoundMetrics], rounds_total: int) -> float | None:
    """How long the rest of the run takes if it goes on like the newest regular rounds; None before the first one."""
    recent = regular_rounds(rounds) or [metrics for metrics in rounds[-ROUNDS_CONSIDERED:] if metrics.round > 0]
    if not recent or rounds_total <= 0:
        return None
    return max(0, rounds_total - recent[-1].round - 1) * median(metrics.round_s for metrics in recent)


def _weigh(wait: float, idle: float, count: int) -> tuple[BottleneckKind, str, int]:
    waits = f"the learner waits {wait:.0%} of its time"
    idles = f"the generators idle {idle:.0%} of theirs"
    if wait > WAIT_TOLERATED and idle > IDLE_TOLERATED:
        remedy = "larger rounds or a higher max_staleness would let them overlap more"
        return "overlap", f"{waits} and {idles}: {remedy}", count
    if wait > WAIT_TOLERATED:
        wanted = min(math.ceil(count / max(1e-9, 1 - wait)), math.ceil(count * MAX_GROWTH))
        return "generation", f"{waits} for rollouts", wanted
    if idle > IDLE_TOLERATED:
        return (
            "training",
            f"the generators idle {idle:.0%} of their time",
            max(1, min(count, math.ceil(count * (1 - idle) * HEADROOM))),
        )
    return "balanced", f"{waits} and {idles}", count


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole))
