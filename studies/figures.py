"""Figures of evaluations and studies, drawn with matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.intervals import Interval

PANEL_INCHES = 3.2


def can_draw() -> bool:
    """Whether the `eval` extra is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_pass_at_k(results: Mapping[str, Any], path: Path) -> bool:
    """pass@k against k, a panel for each benchmark and their mean, a curve for each temperature; False if undrawn."""
    if not can_draw():
        return False
    measured = results["temperatures"]
    names = list(next(iter(measured.values()))["benchmarks"])
    panels = {name: {t: found["benchmarks"][name] for t, found in measured.items()} for name in names}
    if len(names) > 1:
        panels["mean"] = {t: found["mean"] for t, found in measured.items()}
    draw_panels(
        {
            title: {f"tau_eval = {t}": curve["pass_at_k"] for t, curve in curves.items()}
            for title, curves in panels.items()
        },
        path,
    )
    return True


def draw_panels(panels: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]], path: Path) -> None:
    """Panel -> curve -> k -> {"value", "low", "high"}: lines with their intervals as bands, k on a log axis."""
    from matplotlib.figure import Figure

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PANEL_INCHES * columns + 1, PANEL_INCHES * rows), layout="constrained")
    axes: Sequence[Any] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        for label, curve in curves.items():
            ks = [int(k) for k in curve]
            line = axis.plot(ks, [100 * point["value"] for point in curve.values()], label=label, linewidth=1.5)[0]
            low = [100 * point["low"] for point in curve.values()]
            high = [100 * point["high"] for point in curve.values()]
            axis.fill_between(ks, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        shown = [1 << exponent for exponent in range(max(ks).bit_length())]
        axis.set_xscale("log", base=2)
        axis.set_xticks(shown, [str(k) for k in shown])
        axis.set_title(title)
        axis.set_xlabel("k")
        axis.set_ylabel("pass@k, %")
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    axes[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a bar chart."""

    label: str
    group: str
    """Rows of one group have one colour."""
    value: Interval
    """In percent."""
    published: float | None
    """What others have measured, drawn as a diamond."""


def draw_bars(title: str, unit: str, bars: Sequence[Bar], path: Path) -> None:
    """Horizontal bars, the first on top, with intervals as whiskers: labels stay legible however many there are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.4 + 0.34 * len(bars)), layout="constrained")
    axis = figure.subplots()
    groups = list(dict.fromkeys(bar.group for bar in bars))
    for position, bar in enumerate(bars):
        value = bar.value
        known = math.isfinite(value.high) and value.high > value.low
        whiskers = [[value.mean - value.low], [value.high - value.mean]] if known else None
        color = f"C{groups.index(bar.group)}"
        axis.barh(position, value.mean, xerr=whiskers, capsize=3, color=color, alpha=0.55, ecolor="0.25", height=0.7)
        axis.annotate(f"{value.mean:.1f}", (0, position), (4, 0), textcoords="offset points", va="center")
        if bar.published is not None:
            axis.plot(bar.published, position, marker="D", color="black", markersize=5, linestyle="none")
    if any(bar.published is not None for bar in bars):
        axis.plot([], [], marker="D", color="black", markersize=5, linestyle="none", label="published")
        figure.legend(loc="outside lower right")
    axis.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.set_xlabel(unit)
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(title, fontsize="medium", wrap=True)
    figure.savefig(path, dpi=150)


def draw_curves(panels: Mapping[str, Mapping[str, Sequence[Mapping[int, float]]]], path: Path) -> None:
    """Panel -> label -> a curve for each seed, version -> percent: their means as lines, a thin line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5 * len(panels)), layout="constrained")
    axes: Sequence[Any] = list(figure.subplots(len(panels), 1, squeeze=False).flat)
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for number, (label, seeds) in enumerate(curves.items()):
            color, style = f"C{number % 10}", "-" if number < 10 else "--"
            versions = sorted(set.intersection(*(set(curve) for curve in seeds)))
            means = [sum(curve[version] for curve in seeds) / len(seeds) for version in versions]
            axis.plot(versions, means, style, color=color, label=label, linewidth=1.8)
            for curve in seeds if len(seeds) > 1 else ():
                axis.plot(sorted(curve), [curve[version] for version in sorted(curve)], color=color, alpha=0.2)
        axis.set_title(title)
        axis.set_xlabel("version")
        axis.set_ylabel("pass@1, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
