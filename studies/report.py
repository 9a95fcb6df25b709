"""The report of a study, from the numbers of its runs: tables, intervals, verdicts about the claims, a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from services import durable
from services.contracts import RoundMetrics
from studies.figures import Bar, can_draw, draw_bars, draw_curves
from studies.intervals import (
    SEEDS_FOR_INTERVAL,
    ClaimResult,
    Interval,
    Scored,
    counts_in,
    judge_claim,
    over_problems,
    over_seeds,
)
from studies.study_file import BASELINE, UNTRAINED, Claim, Study

KS = (1, 8, 32)
AVG = "AVG"
UNTRAINED_LABELS = {UNTRAINED: "untrained", BASELINE: "Baseline (untrained, best tau_eval)"}


class ReportFiles:
    """Paths of a study's report."""

    def __init__(self, folder: Path) -> None:
        self.text = folder / "report.md"
        self.data = folder / "report.json"
        self.figure = folder / "report.png"
        self.curves = folder / "curves.png"


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run of one method."""

    model: str
    """Empty in a study of one model."""
    method: str
    seed: int
    results: Mapping[str, Any]
    """What its evaluation wrote."""
    speed: Mapping[str, float]
    """As `speed_of` says; empty for a model that was not trained."""
    curve: Mapping[int, float] = field(default_factory=dict)
    """Version -> pass@1 in percent, as far as it was followed."""
    at: float | None = None
    """Temperature of the scores; None: the best of the sweep, or the only one."""

    @property
    def temperature(self) -> float:
        return self.at if self.at is not None else float(self.results["best_temperature"])

    def scores(self) -> dict[str, float]:
        """pass@k and AVG in percent, mean of the benchmarks, at the best (or only) temperature."""
        mean = self.results["temperatures"][f"{self.temperature:g}"]["mean"]
        shown = {f"pass@{k}": mean["pass_at_k"][str(k)]["value"] for k in self._ks}
        return {name: 100 * value for name, value in (shown | {AVG: mean["average"]["value"]}).items()}

    @property
    def _ks(self) -> list[int]:
        return [k for k in KS if k <= self.results["samples"]]

    @property
    def cut_short(self) -> float:
        """Share of its answers, at that temperature, that reached the longest response, in percent."""
        outcomes = self.results["temperatures"][f"{self.temperature:g}"].get("outcomes", {})
        total = sum(count for outcome, count in outcomes.items() if outcome != "cut_short")
        return 100 * outcomes.get("cut_short", 0) / total if total else 0.0

    @property
    def scored(self) -> Scored:
        """What intervals are made of."""
        counts = counts_in(self.results, self.temperature)
        return Scored(self.seed, self.results["samples"], self.scores()[AVG], counts)


@dataclass(frozen=True, slots=True)
class Row:
    """A model trained by a method, over its seeds."""

    model: str
    method: str
    label: str
    runs: Sequence[RunResult]
    published: float | None
    """AVG of others, in percent."""

    def scores(self) -> dict[str, Interval]:
        """pass@k and AVG, each with the interval that its runs give."""
        values = [run.scores() for run in self.runs]
        found = {name: over_seeds([one[name] for one in values]) for name in values[0]}
        if len(self.runs) >= SEEDS_FOR_INTERVAL or not all(run.scored.counts for run in self.runs):
            return found
        scored = [run.scored for run in self.runs]
        return {
            name: over_problems(scored, None if name == AVG else [int(name.removeprefix("pass@"))]) for name in found
        }

    def speed(self) -> dict[str, Interval]:
        """How the runs went; empty for a model that was not trained."""
        speeds = [run.speed for run in self.runs]
        return {name: over_seeds([one[name] for one in speeds]) for name in speeds[0]}


def speed_of(rounds: Sequence[RoundMetrics]) -> dict[str, float]:
    """How a run went, as means over its rounds; empty without rounds."""
    if not rounds:
        return {}
    return {
        "s a round": fmean(line.round_s for line in rounds),
        "learner waits, %": 100 * fmean(min(1.0, line.learner_wait_s / line.round_s) for line in rounds),
        "staleness": fmean(line.staleness_mean for line in rounds),
    }


def curve_of(rounds: Sequence[RoundMetrics]) -> dict[int, float]:
    """Version -> pass@1 in percent, mean of the benchmarks, of every evaluation during a run."""
    evaluations = [found for line in rounds for found in line.evaluations]
    return {found.weight_version: round(100 * found.pass_at_k["mean"][1], 3) for found in evaluations}


def rows_of(study: Study, results: Sequence[RunResult]) -> list[Row]:
    """What has a result, in the order of the study's file."""
    labels = UNTRAINED_LABELS | {name: method.label for name, method in study.methods.items()}
    rows = []
    for name, model in study.models.items():
        for method, label in labels.items():
            runs = [run for run in results if (run.model, run.method) == (name, method)]
            if runs:
                title = f"{model.label} · {label}" if len(study.models) > 1 else label
                rows.append(Row(name, method, title, runs, model.published.get(method)))
    return rows


def judged(study: Study, rows: Sequence[Row]) -> list[ClaimResult]:
    """The claims whose methods have results, for every model."""
    scored = {(row.model, row.method): [run.scored for run in row.runs] for row in rows}
    found = []
    for name, model in study.models.items():
        for claim in study.study.claims:
            better, worse = scored.get((name, claim.better)), scored.get((name, claim.worse))
            if better and worse:
                found.append(judge_claim(_title(claim, model.label, len(study.models)), better, worse))
    return found


def _title(claim: Claim, label: str, models: int) -> str:
    return f"{label}: {claim.text}" if models > 1 else claim.text


def write_report(study: Study, results: Sequence[RunResult]) -> list[Path]:
    """Write text, data and, with matplotlib, the figure into the study's folder; returns their paths."""
    title, rows = study.study.title, rows_of(study, results)
    claims = judged(study, rows)
    written = ReportFiles(study.study.dir)
    durable.write_file(written.text, _markdown(title, rows, claims))
    content = {
        "title": title,
        "methods": {
            f"{row.model} {row.method}".strip(): {
                "label": row.label,
                "temperature": row.runs[0].temperature,
                "seeds": {str(run.seed): run.scores() | dict(run.speed) for run in row.runs},
                "means": {name: _finite(interval) for name, interval in (row.scores() | row.speed()).items()},
                **({} if row.published is None else {"published": row.published}),
            }
            for row in rows
        },
        "claims": [asdict(result) | {"difference": _finite(result.difference)} for result in claims],
    }
    durable.write_file(written.data, json.dumps(content, indent=2) + "\n")
    if not can_draw():
        return [written.text, written.data]
    bars = [Bar(row.label, row.model, row.scores()[AVG], row.published) for row in rows]
    draw_bars(title, f"{AVG}, %", bars, written.figure)
    paths = [written.text, written.data, written.figure]
    followed = {row.label: [run.curve for run in row.runs if len(run.curve) > 1] for row in rows}
    if any(followed.values()):
        panels: dict[str, dict[str, list[Mapping[int, float]]]] = {}
        for row in rows:
            if followed[row.label]:
                model = study.models[row.model]
                panel = panels.setdefault(model.label or row.model, {})
                panel[row.label.removeprefix(f"{model.label} · ")] = followed[row.label]
        draw_curves(panels, written.curves)
        paths.append(written.curves)
    return paths


def _finite(interval: Interval) -> dict[str, float | str | None]:
    values = asdict(interval).items()
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values}


def _markdown(title: str, rows: Sequence[Row], claims: Sequence[ClaimResult]) -> str:
    samples = rows[0].runs[0].results["samples"]
    published = any(row.published is not None for row in rows)
    heads = ["method", "tau_eval", "seeds", *rows[0].scores(), "cut short, %"]
    quality = [
        [
            row.label,
            f"{row.runs[0].temperature:g}",
            str(len(row.runs)),
            *map(str, row.scores().values()),
            f"{fmean(run.cut_short for run in row.runs):.1f}",
            *(_to_published(row) if published else ()),
        ]
        for row in rows
    ]
    lines = [
        f"# {title}",
        "",
        f"Percent; n = {samples} answers a problem. 95 % intervals: ± over seeds (Student's t) where there are "
        f"{SEEDS_FOR_INTERVAL} or more, else [low, high] over problems (bootstrap).",
        "",
        *_table([*heads, *(("published AVG", "difference") if published else ())], quality),
    ]
    lines += _rise_and_fall(rows)
    speeds = {row.label: row.speed() for row in rows if row.speed()}
    if speeds:
        speed = [[label, *map(str, values.values())] for label, values in speeds.items()]
        lines += ["", *_table(["method", *next(iter(speeds.values()))], speed)]
    if claims:
        cells = [
            [result.claim, f"{result.difference.mean:+.1f}", _range(result.difference), f"**{result.verdict}**"]
            for result in claims
        ]
        lines += [
            "",
            "A claim holds where the interval of the difference in AVG, paired by seed or by problem, lies above 0.",
            "",
        ]
        lines += _table(["claim", "difference", "95 % interval", "verdict"], cells)
    return "\n".join(lines) + "\n"


def _rise_and_fall(rows: Sequence[Row]) -> list[str]:
    """A table of where pass@1 began, peaked and ended, of the runs that were followed."""
    cells = []
    for row in rows:
        curves = [run.curve for run in row.runs if len(run.curve) > 1]
        if curves:
            first = over_seeds([curve[min(curve)] for curve in curves])
            peak = over_seeds([max(curve.values()) for curve in curves])
            last = over_seeds([curve[max(curve)] for curve in curves])
            at = fmean(max(curve, key=lambda version: (curve[version], version)) for curve in curves)
            fall = over_seeds([max(curve.values()) - curve[max(curve)] for curve in curves])
            cells.append([row.label, str(first), str(peak), f"{at:.0f}", str(last), str(fall)])
    if not cells:
        return []
    return ["", *_table(["method", "pass@1 at first", "at its peak", "version of the peak", "at last", "fall"], cells)]


def _to_published(row: Row) -> tuple[str, str]:
    if row.published is None:
        return "", ""
    distance = row.scores()[AVG].minus(row.published)
    return f"{row.published:.1f}", f"{distance.mean:+.1f} ({_range(distance)})"


def _range(interval: Interval) -> str:
    return "one seed" if math.isinf(interval.high) else f"{interval.low:+.1f} .. {interval.high:+.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
