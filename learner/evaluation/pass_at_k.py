"""Computes pass@k with confidence intervals from counts of correct samples.

Legend of shapes: N problems, n samples per problem, B bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb

import numpy as np
from numpy.typing import NDArray

from services.errors import DataError

AVG_KS = (1, 8, 32)
"""AVG = (pass@1 + pass@8 + pass@32) / 3, as in the paper (arXiv 2510.18814)."""
RESAMPLES = 2_000


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of n samples, drawn without replacement, hold one of the c correct: 1 - C(n-c, k) / C(n, k).

    Unbiased for the chance that k fresh samples hold a correct one (arXiv 2107.03374, equation 1). Exact in integers,
    rounded once. ValueError outside 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n = {n}, c = {c}, k = {k}")
    return float(1 - Fraction(comb(n - c, k), comb(n, k)))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and its bootstrap confidence interval, all in 0 .. 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PassCurve:
    """pass@k of one benchmark, or the unweighted mean of several."""

    problems: int
    samples: int
    """n, per problem."""
    by_k: dict[int, Estimate]
    """For every k = 1 .. n."""
    average: Estimate
    """AVG: the mean over `average_ks`."""
    average_ks: tuple[int, ...]
    """The values of AVG_KS up to n; with fewer than three the AVG is not the paper's."""

    def __getitem__(self, k: int) -> Estimate:
        return self.by_k[k]


@dataclass(frozen=True, slots=True)
class PassTable:
    """pass@k of several benchmarks and of their mean."""

    benchmarks: dict[str, PassCurve]
    mean: PassCurve
    """Every benchmark counts the same, however many problems it has."""


def pass_table(
    correct: Mapping[str, Sequence[int]], samples: int, *, seed: int = 0, confidence: float = 0.95
) -> PassTable:
    """pass@k from the number of correct samples of every problem, by benchmark.

    The intervals are percentiles of means over problems drawn with replacement (each benchmark among its own), with a
    generator seeded by (seed, benchmark name). So a benchmark's interval does not depend on the rest of the table.

        pass_table({"aime24": [0, 3, 4], "gsm8k": [4, 4]}, samples=4).mean[1].value     0.7916...

    DataError for an empty table or benchmark, and for counts outside 0 .. samples.
    """
    if not correct:
        raise DataError("there are no benchmarks to report", hint="name at least one")
    scores = {name: scores_of(name, counts, samples) for name, counts in correct.items()}
    draws = {name: resampled_means(score, [seed, *name.encode()]) for name, score in scores.items()}
    values = {name: score.mean(axis=0) for name, score in scores.items()}
    curves = {name: _curve(values[name], draws[name], len(scores[name]), confidence) for name in scores}
    mean = _curve(
        np.mean(list(values.values()), axis=0),
        np.mean(list(draws.values()), axis=0),
        sum(len(score) for score in scores.values()),
        confidence,
    )
    return PassTable(curves, mean)


def scores_of(name: str, counts: Sequence[int], samples: int) -> NDArray[np.float64]:
    """[N, n] pass@k of every problem for k = 1 .. n."""
    if samples < 1 or not len(counts):
        raise DataError(f"benchmark {name} has {len(counts)} problems with {samples} samples", hint="evaluate some")
    if min(counts) < 0 or max(counts) > samples:
        raise DataError(
            f"benchmark {name} has counts of correct samples in {min(counts)} .. {max(counts)}, of {samples} samples",
            hint="every problem needs the same number of samples; resume the evaluation first",
        )
    rows = {c: [pass_at_k(samples, c, k) for k in range(1, samples + 1)] for c in set(counts)}
    return np.array([rows[c] for c in counts], dtype=np.float64)


def resampled_means(scores: NDArray[np.float64], seed: Sequence[int]) -> NDArray[np.float64]:
    """[B, n] means over N problems drawn with replacement, as multinomial weights on the problems."""
    generator = np.random.Generator(np.random.PCG64(seed))
    problems = len(scores)
    weights = generator.multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES)
    means: NDArray[np.float64] = weights @ scores / problems
    return means


def _curve(values: NDArray[np.float64], draws: NDArray[np.float64], problems: int, confidence: float) -> PassCurve:
    samples = len(values)
    by_k = {k: _estimate(values[k - 1], draws[:, k - 1], confidence) for k in range(1, samples + 1)}
    average_ks = tuple(k for k in AVG_KS if k <= samples)
    columns = [k - 1 for k in average_ks]
    average = _estimate(values[columns].mean(), draws[:, columns].mean(axis=1), confidence)
    return PassCurve(problems, samples, by_k, average, average_ks)


def _estimate(value: float, draws: NDArray[np.float64], confidence: float) -> Estimate:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(value), float(low), float(high))
