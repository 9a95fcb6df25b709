"""How long a user waits: for `sept --help`, and from `sept run` to its first trained round, part by part.

    python -m benchmarks.startup --json

`first_round_s` is the time from the command to the end of round 0's training, on a tiny model. Of each part: the
seconds from its process' start until it answers or has done the next thing that others wait for. Parts start all at
once, so their times overlap; the learner's rounds begin when the slowest of them is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.runs import SUPERVISOR, Run, base_settings, until, write_inputs

HELPS = 7
ENGINES = ("scripted", "vllm")


def help_s() -> float:
    """Median of a few `sept --help`, the first of which fills the disk cache and does not count."""
    command = [sys.executable, "-m", "sept", "--help"]
    seconds = []
    for _ in range(HELPS + 1):
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])


def settings(inputs: Path, engine: str) -> dict[str, Any]:
    return base_settings(inputs) | {
        "sampling.max_response_tokens": 8,
        "training.rounds": 1,
        "training.prompts_per_round": 8,
        "generator.engine": engine,
    }


async def first_round(folder: Path, inputs: Path, engine: str) -> dict[str, Any]:
    """Seconds until round 0 is trained, and of each part."""
    run = Run(folder, settings(inputs, engine))
    began, seen = time.time(), {}

    async def note(name: str, condition: Callable[[], Awaitable[bool]]) -> None:
        await until(condition, name)
        seen[name] = time.time()

    async def beats(part: str) -> bool:
        return any(beat.part_id == part for beat in await run.beats())

    async def watch() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(note("redis", lambda: run.works("redis", None)))
            group.create_task(note("services", lambda: run.works("services", None)))
            group.create_task(note("learner_import", lambda: beats("learner")))

    await run.whole(watch)
    started = {event["part"]: event["time"] for event in run.events(SUPERVISOR) if event["event"] == "part_started"}
    published, trained = (moment(run, "learner", event) for event in ("published", "round_trained"))
    engine_started = moment(run, "generator-0", "engine_started")
    loading = [event["seconds"] for event in run.events("generator-0") if event["event"] == "vllm_started"]
    return {
        "first_round_s": round(trained - began, 2),
        "until_parts_start_s": round(started["redis"] - began, 2),
        "redis_s": round(seen["redis"] - started["redis"], 2),
        "services_s": round(seen["services"] - started["services"], 2),
        "learner_import_s": round(seen["learner_import"] - started["learner"], 2),
        "learner_load_s": round(published - seen["learner_import"], 2),
        "generator_import_s": round(engine_started - started["generator-0"] - sum(loading), 2),
        "engine_start_s": round(sum(loading), 2),
        "round_s": round(trained - engine_started, 2),
    }


def moment(run: Run, part: str, event: str) -> float:
    """Unix seconds of the first such event in the part's log."""
    text = next(str(line["timestamp"]) for line in run.events(part) if line["event"] == event)
    return datetime.fromisoformat(text).timestamp()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    options = parser.parse_args(argv)
    result: dict[str, Any] = {"help_s": round(help_s(), 3)}
    with tempfile.TemporaryDirectory(prefix="sept-startup-") as name:
        folder = Path(name).resolve()
        write_inputs(folder, seed=0, prompts=8)
        for engine in options.engines:
            result[engine] = asyncio.run(first_round(folder / engine, folder, engine))
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
