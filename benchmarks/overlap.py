"""How much of the slower side's speed an asynchronous run reaches, and what it wins over taking turns.

    python -m benchmarks.overlap --json
    python -m benchmarks.overlap --engine scripted --rounds 8

Three runs of `sept run` on one model, learner, Redis and services bound to one core, the generator to another:

- fixed data: the generator answers everything before the learner starts, so each side is seen alone;
- max_staleness = 2: both at once; `overlap_efficiency` is its rollouts/s over those of the slower side alone;
- max_staleness = 0: they take turns; `speedup_vs_sync` is the second run's rollouts/s over this one's.

A round has as many prompts as in the paper and takes more than a second, so that an update is not most of what happens:
with `--prompts-per-round 64 --response-tokens 48`, a version every 0.4 s, updates cost what the log says.

Speeds leave out the first and last rounds, in which one side has nothing to do yet or any more. The model is random and
about the size of the demo's; the engine is vLLM on CPU by default.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.runs import Run, base_settings, completions, per_s, two_cores, write_inputs
from services.contracts import Heartbeat, RoundMetrics
from services.run_folder import RunFolder

STALENESS = "training.max_staleness"
MOST_STALE = 2
WARM_UP_ROUNDS = 3
WINDOW = (0.2, 0.9)
"""The generator's speed alone is that between these shares of its rollouts: without its first and last moments."""
LOOK_EVERY_S = 0.2


def settings(inputs: Path, options: argparse.Namespace, changes: dict[str, Any]) -> dict[str, Any]:
    """One run's settings; nothing but `changes` differs between the three."""
    return (
        base_settings(inputs)
        | {
            "sampling.max_response_tokens": options.response_tokens,
            "training.rounds": options.rounds,
            "training.prompts_per_round": options.prompts_per_round,
            "training.learning_rate": 1e-6,  # answers keep their length
            "generator.engine": options.engine,
            "generator.max_in_flight": options.in_flight,
        }
        | changes
    )


async def go(run: Run) -> tuple[RunFolder, dict[str, dict[str, float]]]:
    """The finished run, and what each side spent its time on since it had started: shares by part."""
    last: dict[str, Heartbeat] = {}
    one, other = two_cores()

    async def watch() -> None:
        await run.pin({"redis": one, "learner": one, "services": one, "generator-0": other})
        while run.going:
            last.update({beat.part_id: beat for beat in await run.beats() if beat.state not in ("finished", "stopped")})
            await asyncio.sleep(LOOK_EVERY_S)

    folder = await run.whole(watch)
    return folder, {part: started_shares(beat.shares) for part, beat in sorted(last.items())}


def started_shares(shares: dict[str, float]) -> dict[str, float]:
    """Of the time since a part had started; they still sum to one."""
    rest = 1.0 - shares.get("starting", 0.0)
    return {state: round(share / rest, 3) for state, share in shares.items() if state != "starting" and rest > 0}


def generators_alone_per_s(folder: RunFolder) -> float:
    """Rollouts per second while nobody trained."""
    done = completions(folder)
    low, high = (int(share * (len(done) - 1)) for share in WINDOW)
    return (high - low) / (done[high][0] - done[low][0])


def steady(folder: RunFolder) -> list[RoundMetrics]:
    """The rounds in which both sides had work."""
    return list(folder.rounds())[WARM_UP_ROUNDS:-MOST_STALE]


async def overlap(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The benchmark's result."""
    prompts = options.rounds * options.prompts_per_round
    await asyncio.to_thread(write_inputs, folder, seed=0, prompts=prompts, hidden=options.hidden, layers=options.layers)
    speeds: dict[str, list[float]] = {"both": [], "generators_alone": [], "learner_alone": [], "sync": []}
    for repeat in range(options.repeats):
        within = folder / f"repeat-{repeat}"
        apart, _ = await go(Run(within / "apart", settings(folder, options, {"training.data": "fixed"})))
        both, shares = await go(Run(within / "both", settings(folder, options, {STALENESS: MOST_STALE})))
        turns, sync_shares = await go(Run(within / "turns", settings(folder, options, {STALENESS: 0})))
        speeds["both"].append(per_s(steady(both)))
        speeds["generators_alone"].append(generators_alone_per_s(apart))
        speeds["learner_alone"].append(per_s(steady(apart)))
        speeds["sync"].append(per_s(steady(turns)))
    per_second = {name: median(values) for name, values in speeds.items()}
    return {
        "overlap_efficiency": round(
            per_second["both"] / min(per_second["generators_alone"], per_second["learner_alone"]), 3
        ),
        "speedup_vs_sync": round(per_second["both"] / per_second["sync"], 3),
        "engine": options.engine,
        "rollouts_per_s": {name: round(value, 2) for name, value in per_second.items()},
        "all": {name: [round(value, 2) for value in values] for name, values in speeds.items()},
        "staleness_max": max(line.staleness_max for line in both.rounds()),
        "shares": shares,
        "sync_shares": sync_shares,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["vllm", "scripted"], default="vllm")
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--prompts-per-round", type=int, default=128)
    parser.add_argument("--response-tokens", type=int, default=96)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=128, help="width of the model")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2, help="of all three runs; each number is the median")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, to look at them")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="sept-overlap-") as name:
        folder = (options.keep or Path(name)).resolve()
        result = asyncio.run(overlap(folder, options))
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
