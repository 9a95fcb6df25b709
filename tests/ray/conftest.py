"""Ray for this folder's tests: without its dashboard, usage reports and tokens."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("ray.serve")

# read by Ray when it is imported and by every process that it starts
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
    RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S="1",
)
