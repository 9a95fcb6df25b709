"""`make demo`: a model that teaches itself, from nothing to a table in minutes, with the same parts as every run.

1. Pre-train a small addition model on partly wrong examples, once (.cache/demo).
2. `sept run deploy/config/demo.toml`: two generators, the real queue, endpoint and vLLM; no answers are given.
3. Compare how often both models are right on problems that neither has seen.

`python -m studies.demo --prepare` stops after the first step, for runs that are started another way.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy import exit_codes
from deploy.load_settings import load
from deploy.local.run import run_local
from deploy.operate.progress import in_bytes
from deploy.settings import Settings
from deploy.unattended import work_unattended
from services.contracts import RoundMetrics
from services.errors import SeptError
from services.run_folder import RunFolder
from services.weights.export import export_version

CONFIG = Path("deploy/config/demo.toml")


def main() -> int:
    """Run the demo; the exit code of `sept run`."""
    work_unattended(by_thread=False)
    console = Console()
    prepare_only = sys.argv[1:2] == ["--prepare"]
    settings = load(CONFIG, sys.argv[2:] if prepare_only else sys.argv[1:])
    try:
        if prepare_only:
            prepare(settings, console)
            return exit_codes.OK
        return asyncio.run(_demo(settings, console))
    except SeptError as error:
        console.print(str(error), style="red", highlight=False)
        return exit_codes.code_of(error)


async def _demo(settings: Settings, console: Console) -> int:
    prepare(settings, console)
    started = time.monotonic()
    stopped_by = await run_local(settings, console)
    if stopped_by is not None:
        return exit_codes.of_signal(stopped_by)
    seconds = time.monotonic() - started
    folder = RunFolder(settings.run.dir)
    shutil.rmtree(folder.model, ignore_errors=True)
    export_version(folder, folder.model)
    console.print(compare(settings, folder.model, list(folder.rounds()), seconds))
    console.print(where_next(folder), highlight=False)
    return exit_codes.OK


def prepare(settings: Settings, console: Console) -> None:
    """Make the prompts, the held-out problems and, unless it exists, the model that the config names."""
    from studies import addition

    addition.prepare(settings, console.print)


def compare(settings: Settings, trained: Path, rounds: Sequence[RoundMetrics], seconds: float) -> Table:
    """Before and after, and what it took."""
    from studies import addition

    _, held_out = addition.split_problems()
    before = addition.pass_at_1(Path(settings.model.path), held_out)
    after = addition.pass_at_1(trained, held_out)
    table = Table("", "before", "after", title="Self-training without answers, rewards or a teacher")
    table.add_row("pass@1 at temperature 1 (held-out problems)", f"{before:.1%}", f"[bold]{after:.1%}[/]")
    table.add_row("points won", "", f"{100 * (after - before):+.1f}")
    if rounds:
        updates = sum(metrics.sync_bytes for metrics in rounds) / len(rounds)
        staleness = sum(metrics.staleness_mean for metrics in rounds) / len(rounds)
        newest = max(metrics.staleness_max for metrics in rounds)
        pauses = sorted(metrics.pause_ms for metrics in rounds)
        table.add_row("rounds", "", str(len(rounds)))
        table.add_row("weight version", "0", str(rounds[-1].weight_version))
        table.add_row("staleness, mean / max", "", f"{staleness:.2f} / {newest}")
        table.add_row(
            "bytes per update, of a full copy", "", f"{in_bytes(updates)} of {in_bytes(rounds[-1].sync_full_bytes)}"
        )
        table.add_row("generation paused per update, median", "", f"{pauses[len(pauses) // 2]:.0f} ms")
    table.add_row("wall time of the run", "", f"{seconds:.0f} s")
    return table


def where_next(folder: RunFolder) -> str:
    """Which files to look at next."""
    return (
        f"\n{folder.metrics}   one line a round: loss, staleness, tokens/s, bytes\n"
        f"{folder.rollouts}/   what the model answered in every round\n"
        f"{folder.logs}/   one log a part\n"
        f"{folder.model}/   the trained model as a Hugging Face folder\n"
        "deploy/config/real-cpu.toml   the same with a real language model\n"
        "docs/configuration.md   every setting"
    )


if __name__ == "__main__":
    sys.exit(main())
