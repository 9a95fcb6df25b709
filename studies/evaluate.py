"""`sept eval`: pass@k of one model on benchmarks, from a run with an evaluator instead of a learner."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from deploy.load_settings import load
from deploy.local.run import run_local
from deploy.settings import Settings
from services.run_folder import RUNS, EvaluationFolder, RunFolder
from services.weights.export import export_version
from studies.figures import draw_pass_at_k

MEAN = "mean"


def evaluation_settings(
    model: str,
    options: Mapping[str, object],
    *,
    out: Path | None = None,
    config: Path | None = None,
    weight_version: int | None = None,
    sets: Iterable[str] = (),
) -> Settings:
    """The settings of an evaluation: those of `config` (or of the run that `model` is), and `options` as [evaluation].

    A version of a run is first written as a model folder below `out`.
    """
    run = RunFolder(Path(model))
    is_run = run.identity.exists()
    folder = out or RUNS / f"eval-{_name_of(model, weight_version)}"
    path = str(_exported(run, folder, weight_version)) if is_run else model
    if config is None and is_run and run.config.exists():
        config = run.config
    chosen = [f"evaluation.{key}={value}" for key, value in options.items() if value is not None]
    return load(config, [f"model.path={path}", "services.port=0", *chosen, *sets, f"run.dir={folder}"])


def _name_of(model: str, weight_version: int | None) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2]).strip("-.") or "model"
    return name if weight_version is None else f"{name}-v{weight_version}"


def _exported(run: RunFolder, folder: Path, weight_version: int | None) -> Path:
    target = RunFolder(folder).model
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        export_version(run, target, weight_version)
    return target


async def evaluate_model(settings: Settings, console: Console) -> signal.Signals | None:
    """Evaluate, then show the table and draw the figure; the signal that stopped it, if one did."""
    stopped_by = await run_local(settings, console, leader="evaluator")
    folder = EvaluationFolder(settings.run.dir)
    if stopped_by is not None:
        console.print(f"stopped; the same command goes on with the answers in {folder.path}")
        return stopped_by
    results = json.loads(folder.results.read_text())
    for table in tables(results):
        console.print(table)
    console.print(remarks(results), highlight=False)
    written = [folder.results, folder.generations]
    if draw_pass_at_k(results, folder.figure):
        written.append(folder.figure)
    console.print(f"{folder.path}/: {', '.join(path.name for path in written)}", highlight=False)
    return None


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Every benchmark at the best temperature and, after a sweep, the mean at every temperature."""
    best = f"{results['best_temperature']:g}"
    measured = results["temperatures"]
    ks = _shown_ks(results["samples"])
    heads = [*(f"pass@{k}" for k in ks), "AVG"]
    per_benchmark = Table(
        "benchmark",
        "problems",
        *heads,
        box=SIMPLE,
        padding=(0, 1),
        title=f"pass@k at tau_eval = {best}, 95 % intervals",
    )
    rows = measured[best]["benchmarks"]
    for name, curve in rows.items():
        per_benchmark.add_row(name, str(curve["problems"]), *_cells(curve, ks))
    if len(rows) > 1:
        per_benchmark.add_section()
        per_benchmark.add_row(MEAN, str(measured[best][MEAN]["problems"]), *_cells(measured[best][MEAN], ks))
    if len(measured) == 1:
        return [per_benchmark]
    sweep = Table("tau_eval", *heads, box=SIMPLE, padding=(0, 1), title="Mean of the benchmarks at every temperature")
    for temperature, found in measured.items():
        label = f"[bold]{temperature} (best)[/]" if temperature == best else temperature
        sweep.add_row(label, *_cells(found[MEAN], ks))
    return [sweep, per_benchmark]


def remarks(results: Mapping[str, Any]) -> str:
    """What a reader must know about the numbers."""
    ks = results["average_over_k"]
    lines = [f"AVG is the mean of {', '.join(f'pass@{k}' for k in ks)}; n = {results['samples']} answers a problem"]
    if 32 not in ks:
        lines[0] += " (the paper's AVG takes pass@1, pass@8 and pass@32, from n = 32)"
    for temperature, found in results["temperatures"].items():
        outcomes = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in found["outcomes"].items() if count)
        lines.append(f"tau_eval {temperature}: {outcomes}")
    return "\n".join(lines)


def _shown_ks(samples: int) -> list[int]:
    """As many as a terminal has room for; the results have all."""
    return [k for k in (1, 4, 8, 32) if k < samples] + [samples]


def _cells(curve: Mapping[str, Any], ks: list[int]) -> list[str]:
    return [in_percent(curve["pass_at_k"][str(k)]) for k in ks] + [in_percent(curve["average"])]


def in_percent(estimate: Mapping[str, float]) -> str:
    """{"value": 0.546, "low": 0.52, "high": 1} -> '54.6' and, below it, '52.0-100'."""
    value, low, high = (f"{100 * estimate[name]:.1f}".replace("100.0", "100") for name in ("value", "low", "high"))
    return f"{value}\n[dim]{low}-{high}[/]"
