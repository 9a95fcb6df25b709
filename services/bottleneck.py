"""Finds which side of a run is short of work, and how many generators would balance it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from services.contracts import GeneratorStatus, RoundMetrics

BottleneckKind = Literal["unknown", "generation", "training", "overlap", "balanced"]
"""`overlap`: both sides wait for each other, so that more of either would not help."""

ROUNDS_CONSIDERED = 20
"""The newest rounds that are looked at."""
ROUNDS_NEEDED = 3
"""The first round also pays for the start: fewer than this say nothing."""
WAIT_TOLERATED = 0.10
"""Share of the learner's time that may go to waiting before generation counts as the bottleneck."""
IDLE_TOLERATED = 0.30
"""Share of the generators' time that may go to waiting for tasks before training counts as the bottleneck."""
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
    """Mean over the living generators of the time they waited for tasks since each started; 0 .. 1."""


def find_bottleneck(rounds: Sequence[RoundMetrics], generators: Sequence[GeneratorStatus]) -> Bottleneck:
    """What limits the run by the newest of `rounds` and the generators that are alive.

    With n generators and a learner that waits the share w of its time, generation takes 1 / (1 - w) times as long
    as training: n / (1 - w) generators would keep the learner busy. With generators that idle the share i, n (1 - i)
    are enough, plus headroom.
    """
    living = [status.heartbeat for status in generators if not status.lost]
    recent = [metrics for metrics in rounds[-ROUNDS_CONSIDERED:] if metrics.round_s > 0]
    if not living:
        return Bottleneck(kind="unknown", reason="no generator is alive")
    if len(recent) < ROUNDS_NEEDED:
        return Bottleneck(kind="unknown", reason=f"known after {ROUNDS_NEEDED} rounds")
    wait = _share(sum(metrics.learner_wait_s for metrics in recent), sum(metrics.round_s for metrics in recent))
    idle = sum(_share(beat.shares.get("waiting_for_tasks", 0.0), 1.0) for beat in living) / len(living)
    kind, reason, count = _weigh(wait, idle, len(living))
    return Bottleneck(
        kind=kind,
        reason=reason,
        suggested_generators=count if count != len(living) else None,
        learner_wait_ratio=wait,
        generator_idle_ratio=idle,
    )


def _weigh(wait: float, idle: float, count: int) -> tuple[BottleneckKind, str, int]:
    waits = f"the learner waits {wait:.0%} of its time"
    idles = f"the generators wait {idle:.0%} of theirs"
    if wait > WAIT_TOLERATED and idle > IDLE_TOLERATED:
        remedy = "larger rounds or a higher max_staleness would let them overlap more"
        return "overlap", f"{waits} and {idles}: {remedy}", count
    if wait > WAIT_TOLERATED:
        wanted = min(math.ceil(count / max(1e-9, 1 - wait)), math.ceil(count * MAX_GROWTH))
        return "generation", f"{waits} for rollouts", wanted
    if idle > IDLE_TOLERATED:
        return (
            "training",
            f"the generators wait {idle:.0%} of their time for tasks",
            max(1, min(count, math.ceil(count * (1 - idle) * HEADROOM))),
        )
    return "balanced", f"{waits} and {idles}", count


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole))
