"""The algorithms by name. A new one needs its own file and its place in this list."""

from __future__ import annotations

from learner.algorithms.base import Algorithm
from learner.algorithms.entropy import ENTROPY
from learner.algorithms.grpo import GRPO
from learner.algorithms.nll import NLL

ALGORITHMS: dict[str, Algorithm] = {algorithm.name: algorithm for algorithm in (NLL, ENTROPY, GRPO)}
"""What training.algorithm can name."""
