"""Intervals of a study's numbers, over seeds or over problems, and what they say of a claim.

With SEEDS_FOR_INTERVAL seeds or more a mean has an interval over seeds (Student's t). With fewer, two seeds would span
a factor of 12.7: the interval is a bootstrap over problems then, and says nothing of what another seed would give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from learner.evaluation.pass_at_k import AVG_KS, resampled_means, scores_of

SEEDS_FOR_INTERVAL = 3
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95 % quantiles of Student's t for 1 .. 10 degrees of freedom."""

Counts = Mapping[str, Sequence[int]]
"""Benchmark -> correct answers of every problem."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean in percent with its 95 % interval; infinite where nothing gives one."""

    mean: float
    low: float
    high: float
    over: Literal["seeds", "problems"] = "seeds"

    def __str__(self) -> str:
        """'57.1 ± 0.4' over seeds, '57.1 [55.0, 59.3]' over problems, '57.1' without an interval."""
        if math.isinf(self.high) or self.low == self.high:
            return f"{self.mean:.1f}"
        if self.over == "problems":
            return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"
        return f"{self.mean:.1f} ± {(self.high - self.low) / 2:.1f}"

    def minus(self, value: float) -> Interval:
        """The same interval around the distance to a fixed value."""
        return Interval(self.mean - value, self.low - value, self.high - value, self.over)


@dataclass(frozen=True, slots=True)
class Scored:
    """One run's answers to the problems of an evaluation, at one temperature."""

    seed: int
    samples: int
    """n, per problem."""
    average: float
    """AVG in percent."""
    counts: Counts


def counts_in(results: Mapping[str, Any], temperature: float) -> Counts:
    """Of an evaluation's results; empty for one of a release that did not write them."""
    benchmarks = results["temperatures"][f"{temperature:g}"]["benchmarks"]
    return {name: curve["correct"] for name, curve in benchmarks.items() if "correct" in curve}


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean of the values, which are one a seed, and its interval; infinite with a single seed."""
    mean, count = fmean(values), len(values)
    if count == 1:
        return Interval(mean, -math.inf, math.inf)
    quantile = T_975[count - 2] if count - 2 < len(T_975) else 1.96 + 2.5 / (count - 1)
    half = quantile * stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def over_problems(runs: Sequence[Scored], ks: Sequence[int] | None = None, minus: Sequence[Scored] = ()) -> Interval:
    """Mean over the runs of pass@k, itself averaged over `ks` (default: those of AVG), less that of `minus`.

    Both are of the same problems, which are drawn together: what is hard for both moves the difference of neither.
    """
    benchmarks = list(runs[0].counts)
    values, draws = [], []
    for name in benchmarks:
        scores = _of_problems(runs, name, ks) - (_of_problems(minus, name, ks) if minus else 0.0)
        values.append(scores.mean())
        draws.append(resampled_means(scores[:, None], [0, *name.encode()])[:, 0])
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return Interval(100 * float(np.mean(values)), 100 * float(low), 100 * float(high), over="problems")


def _of_problems(runs: Sequence[Scored], name: str, ks: Sequence[int] | None) -> NDArray[np.float64]:
    """[N] of each problem, averaged over the k and over the runs."""
    scores = []
    for run in runs:
        columns = [k - 1 for k in ks or AVG_KS if k <= run.samples]
        scores.append(scores_of(name, run.counts[name], run.samples)[:, columns].mean(axis=1))
    mean: NDArray[np.float64] = np.mean(scores, axis=0)
    return mean


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """What the runs say about a claim: the difference of AVG, paired by seed or by problem."""

    claim: str
    difference: Interval
    verdict: str
    """holds, does not hold (the reverse does), or undecided (the interval contains 0, or is infinite)."""


def judge_claim(text: str, better: Sequence[Scored], worse: Sequence[Scored]) -> ClaimResult:
    """Compare AVG: by seed where there are enough, else by problem.

    A method that has one value for all seeds (the untrained model) is compared with each of the other's.
    """
    pairs = _paired(better, worse)
    difference = over_seeds(pairs)
    comparable = {*map(_problems, better), *map(_problems, worse)}
    if len(pairs) < SEEDS_FOR_INTERVAL and len(comparable) == 1 and comparable != {()}:
        difference = over_problems(better, minus=worse)
    verdict = "holds" if difference.low > 0 else "does not hold" if difference.high < 0 else "undecided"
    return ClaimResult(text, difference, verdict)


def _paired(better: Sequence[Scored], worse: Sequence[Scored]) -> list[float]:
    ones, others = ({run.seed: run.average for run in runs} for runs in (better, worse))
    seeds = ones if len(ones) >= len(others) else others
    return [_of_seed(ones, seed) - _of_seed(others, seed) for seed in seeds]


def _of_seed(values: Mapping[int, float], seed: int) -> float:
    return values[seed] if seed in values else next(iter(values.values()))


def _problems(run: Scored) -> tuple[tuple[str, int], ...]:
    """Benchmarks with their numbers of problems."""
    return tuple((name, len(counts)) for name, counts in run.counts.items())
