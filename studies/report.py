"""The report of a study, from the results of its runs: tables, intervals over seeds, verdicts about the claims."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from services import durable
from services.contracts import RoundMetrics
from studies.figures import can_draw, draw_bars

KS = (1, 8, 32)
AVG = "AVG"
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95 % quantiles of Student's t for 1 .. 10 degrees of freedom."""


class ReportFiles:
    """Paths of a study's report."""

    def __init__(self, folder: Path) -> None:
        self.text = folder / "report.md"
        self.data = folder / "report.json"
        self.figure = folder / "report.png"


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run of one method."""

    method: str
    seed: int
    results: Mapping[str, Any]
    """What its evaluation wrote."""
    rounds: Sequence[RoundMetrics]
    """Empty for a model that was not trained."""
    at: float | None = None
    """Temperature of the scores; None: the best of the sweep, or the only one."""

    @property
    def temperature(self) -> float:
        return self.at if self.at is not None else float(self.results["best_temperature"])

    def scores(self) -> dict[str, float]:
        """pass@k and AVG in percent, mean of the benchmarks, at the best (or only) temperature."""
        mean = self.results["temperatures"][f"{self.temperature:g}"]["mean"]
        shown = {f"pass@{k}": mean["pass_at_k"][str(k)]["value"] for k in KS if str(k) in mean["pass_at_k"]}
        return {name: 100 * value for name, value in (shown | {AVG: mean["average"]["value"]}).items()}

    def speed(self) -> dict[str, float]:
        """How the run went, as means over its rounds."""
        if not self.rounds:
            return {}
        return {
            "s a round": fmean(line.round_s for line in self.rounds),
            "learner waits, %": 100 * fmean(min(1.0, line.learner_wait_s / line.round_s) for line in self.rounds),
            "staleness": fmean(line.staleness_mean for line in self.rounds),
        }


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over seeds with its 95 % interval (Student's t); without one where there is a single value."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        half = (self.high - self.low) / 2
        return f"{self.mean:.1f}" if math.isinf(half) or half == 0 else f"{self.mean:.1f} ± {half:.1f}"


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """What the runs say about a claim: the difference of AVG, paired by seed."""

    claim: str
    difference: Interval
    verdict: str
    """holds, does not hold (the reverse does), or undecided (the interval contains 0, or is infinite)."""


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean of the values, which are one a seed, and its interval; infinite with a single seed."""
    mean, count = fmean(values), len(values)
    if count == 1:
        return Interval(mean, -math.inf, math.inf)
    quantile = T_975[count - 2] if count - 2 < len(T_975) else 1.96 + 2.5 / (count - 1)
    half = quantile * stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def judge_claim(text: str, better: Mapping[int, float], worse: Mapping[int, float]) -> ClaimResult:
    """Compare AVG by seed; a method that has one value for all seeds (the untrained model) is compared with each."""
    pairs = [(value, _of_seed(worse, seed)) for seed, value in better.items()]
    if len(better) == 1:
        pairs = [(_of_seed(better, seed), value) for seed, value in worse.items()]
    difference = over_seeds([one - other for one, other in pairs])
    verdict = "holds" if difference.low > 0 else "does not hold" if difference.high < 0 else "undecided"
    return ClaimResult(text, difference, verdict)


def _of_seed(values: Mapping[int, float], seed: int) -> float:
    return values[seed] if seed in values else next(iter(values.values()))


def write_report(
    folder: Path,
    title: str,
    labels: Mapping[str, str],
    claims: Sequence[tuple[str, str, str]],
    results: Sequence[RunResult],
) -> list[Path]:
    """Write text, data and, with matplotlib, the figure; returns their paths."""
    by_method = {name: [one for one in results if one.method == name] for name in labels}
    by_method = {name: found for name, found in by_method.items() if found}
    rows = {name: _means([one.scores() for one in found]) for name, found in by_method.items()}
    speeds = {name: _means([one.speed() for one in found]) for name, found in by_method.items() if found[0].rounds}
    averages = {name: {one.seed: one.scores()[AVG] for one in found} for name, found in by_method.items()}
    claim_results = [
        judge_claim(text, averages[better], averages[worse])
        for text, better, worse in claims
        if better in averages and worse in averages
    ]
    written = ReportFiles(folder)
    durable.write_file(written.text, _markdown(title, labels, by_method, rows, speeds, claim_results))
    content = {
        "title": title,
        "methods": {
            name: {
                "label": labels[name],
                "temperature": found[0].temperature,
                "seeds": {str(one.seed): one.scores() | one.speed() for one in found},
                "means": {score: _finite(interval) for score, interval in (rows[name] | speeds.get(name, {})).items()},
            }
            for name, found in by_method.items()
        },
        "claims": [asdict(result) | {"difference": _finite(result.difference)} for result in claim_results],
    }
    durable.write_file(written.data, json.dumps(content, indent=2) + "\n")
    if not can_draw():
        return [written.text, written.data]
    draw_bars(title, {labels[name]: _finite(row[AVG]) for name, row in rows.items()}, written.figure)
    return [written.text, written.data, written.figure]


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    return {name: over_seeds([one[name] for one in values]) for name in values[0]}


def _finite(interval: Interval) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(interval).items()}


def _markdown(
    title: str,
    labels: Mapping[str, str],
    found: Mapping[str, Sequence[RunResult]],
    rows: Mapping[str, Mapping[str, Interval]],
    speeds: Mapping[str, Mapping[str, Interval]],
    claim_results: Sequence[ClaimResult],
) -> str:
    seeds = max(len(results) for results in found.values())
    samples = next(iter(found.values()))[0].results["samples"]
    quality = [
        [labels[name], f"{found[name][0].temperature:g}", str(len(found[name])), *map(str, row.values())]
        for name, row in rows.items()
    ]
    lines = [
        f"# {title}",
        "",
        f"Percent; mean and 95 % interval over {seeds} seeds (Student's t), n = {samples} answers a problem.",
        "",
        *_table(["method", "tau_eval", "seeds", *next(iter(rows.values()))], quality),
    ]
    if speeds:
        speed = [[labels[name], *map(str, row.values())] for name, row in speeds.items()]
        lines += ["", *_table(["method", *next(iter(speeds.values()))], speed)]
    if claim_results:
        cells = [
            [result.claim, f"{result.difference.mean:+.1f}", _range(result.difference), f"**{result.verdict}**"]
            for result in claim_results
        ]
        lines += ["", "A claim holds where the interval of the difference in AVG, paired by seed, lies above 0.", ""]
        lines += _table(["claim", "difference", "95 % interval", "verdict"], cells)
    return "\n".join(lines) + "\n"


def _range(interval: Interval) -> str:
    return "one seed" if math.isinf(interval.high) else f"{interval.low:+.1f} .. {interval.high:+.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
