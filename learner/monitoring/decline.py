"""Finds a run that gets worse while it looks healthy: sure of its answers, in good form, and wrong more often.

Labels are the only thing that shows this, so the run's evaluations are the probe: a few problems with known answers,
which are never trained on. A fall counts when chance does not explain it. What one evaluation would differ by if its
answers were drawn anew follows from pass@1 and pass@2: their difference is an unbiased estimate of p (1 - p), so

    error(pass@1)^2 = (pass@2 - pass@1) / (problems * n)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import structlog

from services.contracts import EvaluationMetrics, RoundMetrics

log = structlog.get_logger()

MEAN = "mean"
WINDOW = 3
"""Evaluations that are averaged: the peak is one of several evaluations, not the luckiest one."""
MIN_FALL = 0.02
"""A smaller fall of pass@1 below its peak is no sign."""
ERRORS = 4.0
"""A fall of fewer standard errors is no sign. The highest of 50 evaluations of a model that does not change lies about
2.5 above their mean, and the newest may lie as far below it."""
SEEN_IN_TIME = 0.05
"""A probe that cannot show a fall of this size is too small; the log says so."""


class Probed(NamedTuple):
    """What is known of one version."""

    version: int
    pass_at_1: float
    """Mean of the benchmarks."""
    variance: float
    """Of `pass_at_1`, from drawing the answers."""
    vote_share: float | None
    """Of the round that made the version."""


class Peak(NamedTuple):
    """The version up to which pass@1 was highest on average."""

    version: int
    pass_at_1: float
    """Mean of the evaluations in its window."""


class DeclineMonitor:
    """Compares every evaluation of a run with the best that it had.

    monitor = DeclineMonitor(folder.rounds())        evaluations recorded before, so a resume changes nothing
    monitor.examine(metrics)                         ["pass@1 on the probe is 61.0%, 4.2 points below ..."]
    monitor.peak                                     Peak(version=40, pass_at_1=0.652)
    """

    def __init__(self, recorded: Iterable[RoundMetrics]) -> None:
        self._probed: list[Probed] = []
        for metrics in recorded:
            self._take(metrics)

    @property
    def peak(self) -> Peak | None:
        """None before the first evaluation. Of equal means the later one."""
        windows = self._windows()
        if not windows:
            return None
        best = _best(windows)
        return Peak(best[-1].version, _mean(best))

    def examine(self, metrics: RoundMetrics) -> list[str]:
        """The sign that the versions evaluated with this round are worse than the best, in words; else nothing."""
        if not self._take(metrics):
            return []
        windows = self._windows()
        best, newest = _best(windows), self._probed[-1:]
        if best[-1].version == newest[0].version:
            return []
        for now in (windows[-1], newest):
            fall = _mean(best) - _mean(now)
            if fall > max(MIN_FALL, ERRORS * math.sqrt(_variance(best) + _variance(now))):
                return [_in_words(best, now, fall)]
        return []

    def _take(self, metrics: RoundMetrics) -> bool:
        """Keep what was evaluated with the round; whether anything was."""
        found = [
            Probed(evaluation.weight_version, *measured, metrics.vote_share)
            for version in sorted({evaluation.weight_version for evaluation in metrics.evaluations})
            if (evaluation := next(one for one in metrics.evaluations if one.weight_version == version))
            and (measured := _measured(evaluation)) is not None
        ]
        if not found:
            return False
        # A rollback does rounds again: what was known of their versions is of others.
        self._probed = [probed for probed in self._probed if probed.version < found[0].version] + found
        shown = ERRORS * math.sqrt(2 * found[-1].variance / WINDOW)
        if len(self._probed) == len(found) and shown > SEEN_IN_TIME:
            log.warning("probe_too_small", shows_a_fall_of=round(shown, 3), wanted=SEEN_IN_TIME)
        return True

    def _windows(self) -> list[Sequence[Probed]]:
        """For every evaluation: it and those right before it."""
        return [self._probed[max(0, end - WINDOW) : end] for end in range(1, len(self._probed) + 1)]


def _measured(evaluation: EvaluationMetrics) -> tuple[float, float] | None:
    """(pass@1, its variance) as means over the benchmarks; None where the number of problems is not recorded."""
    curves: Mapping[str, Mapping[int, float]] = {
        name: by_k for name, by_k in evaluation.pass_at_k.items() if name != MEAN
    }
    if not curves or set(curves) != set(evaluation.problems):
        return None
    values = [by_k[1] for by_k in curves.values()]
    variances = [
        max(0.0, by_k[2] - by_k[1] if 2 in by_k else by_k[1] * (1 - by_k[1]))
        / (evaluation.problems[name] * evaluation.samples)
        for name, by_k in curves.items()
    ]
    return sum(values) / len(values), sum(variances) / len(variances) ** 2


def _best(windows: Sequence[Sequence[Probed]]) -> Sequence[Probed]:
    """The window with the highest mean, of equal ones the latest."""
    return max(windows, key=lambda window: (round(_mean(window), 6), window[-1].version))


def _mean(window: Sequence[Probed]) -> float:
    return sum(probed.pass_at_1 for probed in window) / len(window)


def _variance(window: Sequence[Probed]) -> float:
    return sum(probed.variance for probed in window) / len(window) ** 2


def _in_words(best: Sequence[Probed], now: Sequence[Probed], fall: float) -> str:
    said = (
        f"pass@1 on the probe is {_mean(now):.1%}, {100 * fall:.1f} points below its peak of {_mean(best):.1%} "
        f"at version {best[-1].version}"
    )
    before, after = best[-1].vote_share, now[-1].vote_share
    if before is not None and after is not None and after > before:
        said += f", while the answers agree more: vote share {before:.2f}, now {after:.2f}"
    return said
