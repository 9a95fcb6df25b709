"""Figures of evaluations and studies, drawn with matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def draw_bars(title: str, values: Mapping[str, Mapping[str, float | None]], path: Path) -> None:
    """A bar for each label, {"mean", "low", "high"} in percent; no whiskers where there is no interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 1.1 * len(values), PANEL_INCHES + 0.6), layout="constrained")
    axis = figure.subplots()
    for position, value in enumerate(values.values()):
        mean = value["mean"] or 0.0
        low, high = value["low"], value["high"]
        whiskers = None if low is None or high is None else [[mean - low], [high - mean]]
        axis.bar(position, mean, yerr=whiskers, capsize=4, color="0.75")
        axis.annotate(f"{mean:.1f}", (position, 2), ha="center")
    axis.set_xticks(range(len(values)), list(values), rotation=30, ha="right")
    axis.set_ylabel("AVG, %")
    axis.set_title(title, fontsize="medium")
    figure.savefig(path, dpi=150)
