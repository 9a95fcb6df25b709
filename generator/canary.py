"""Whether an engine computes what the learner computes: compares its log-probabilities of a version's canaries with
the learner's own.

The learner computes in float32 with the weights as published; an engine may compute in another type, and every type
has its rounding. Measured with SmolLM2-135M, the mean difference is 1.7e-5 in float32, 0.015 in float16 and 0.12 in
bfloat16; one tensor of one layer lost or shuffled makes it 0.4 to 0.9, one lost row of an MLP 0.013.
"""

from __future__ import annotations

import asyncio

from generator.engines.base import Engine
from services.contracts import WeightManifest
from services.errors import DeadlineError

TOLERANCES = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
"""Largest mean difference of a log-probability that the rounding of an engine's type explains."""

COMPARED = 32
"""Log-probabilities of each canary that count, its last ones: a long canary is there for what comes after the length at
which the model changes."""
DEADLINE_S = 600.0
"""Longest wait for an engine to score the canaries; with a full KV cache they are queued like any request."""


async def describe_mismatch(engine: Engine, manifest: WeightManifest) -> str:
    """How the weights that the engine serves differ from `manifest`'s version; empty when they agree.

    Raises:
        DeadlineError: the engine gave no answer.
        EngineError: it died.
    """
    differences: list[float] = []
    try:
        async with asyncio.timeout(DEADLINE_S):
            for canary in manifest.canaries:
                scored = await engine.score(canary.tokens)
                if scored is None:
                    return ""
                compared = zip(canary.log_probs, scored, strict=False)
                differences += [abs(own - its) for own, its in compared][-COMPARED:]
    except TimeoutError:
        raise DeadlineError("the engine", "the log-probabilities of the canaries", DEADLINE_S) from None
    mean = sum(differences) / max(1, len(differences))
    tolerance = TOLERANCES.get(engine.precision, TOLERANCES["bfloat16"])
    if mean <= tolerance:  # false for NaN, which is a mismatch
        return ""
    return (
        f"the log-probabilities of {len(manifest.canaries)} canaries differ from the learner's by {mean:.3g} "
        f"on average, more than {tolerance:g}, which is what rounding to {engine.precision} explains"
    )
