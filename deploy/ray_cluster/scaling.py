"""How many generators the queue needs, as an autoscaling policy of Ray Serve.

It runs in Serve's controller and imports nothing of sept. Serve keeps the number between min_replicas and max_replicas
and applies the delays.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

METRIC = "open_requests"
"""What generators report: requests of tasks that are queued or leased."""


class Context(Protocol):
    """What is read of ray.serve.config.AutoscalingContext."""

    target_num_replicas: int
    aggregated_metrics: dict[str, dict[Any, float]] | None


class QueuePolicy:
    """Enough generators to hold every open request at once.

    QueuePolicy(requests_per_generator=64)      # 130 requests are open: 3 generators
    """

    def __init__(self, requests_per_generator: int) -> None:
        self._requests_per_generator = requests_per_generator

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """The number of generators, and no state. The present number until a generator has reported."""
        reports = (context.aggregated_metrics or {}).get(METRIC)
        if not reports:
            return context.target_num_replicas, {}
        # all report on the same queue; the largest report rather starts a generator too many
        return math.ceil(max(reports.values()) / self._requests_per_generator), {}
