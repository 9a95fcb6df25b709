"""SSD: NLL on the untrained model's own answers, sampled with its tail cut off, without those that say nothing.

The teacher is the model at `sampling.tau_start` with `sampling.top_k`, `top_p` or `min_p`: use training.data = fixed.
"""

from __future__ import annotations

from learner.algorithms.base import Algorithm, Group, Judge, Signal
from learner.algorithms.vote_nll import weighted_nll


def signals(group: Group, judge: Judge) -> list[Signal]:
    """A stub weighs 0, every other answer 1 (arXiv 2604.01193). A stub is empty, or one line without an answer that
    can be compared: "x = 4" is none."""
    lines = [len(answer.strip().splitlines()) for answer in group.answers]
    classes = judge.classes(group.answers)
    kept = [
        float(count > 1 or (count == 1 and class_ is not None)) for count, class_ in zip(lines, classes, strict=True)
    ]
    return [Signal(weight, weight) for weight in kept]


SSD = Algorithm("ssd", losses=weighted_nll, signals=signals, counts_kept_tokens=True)
"""Its learning rate falls to 0 with training.recipe = ssd."""
