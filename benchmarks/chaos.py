"""Disturbs real runs and checks that they become the runs they would have been.

    python -m benchmarks.chaos --json                      # 30 kills, then every other kind: one JSON line each
    python -m benchmarks.chaos --kills 30 --only --json    # the kills alone
    python -m benchmarks.chaos --kills 0 --only full-disk stopped-learner
    python -m benchmarks.chaos --engine vllm --kills 4 --only --json

Two runs of `sept run` on the same tiny model, prompts and seed: one in peace, one in which redis, services, learner,
generators and the supervisor itself are killed with SIGKILL, in an order and at moments drawn from a printed seed. With
the scripted engine every answer is a function of its task and of the very bytes of the weights that sampled it, and
max_staleness is 0: a single token from a wrong version, a rollout lost or trained twice changes the final weights.
Each part's recovery is the time from the kill until its successor does the part's work again.

The other kinds are those of `benchmarks.disasters`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks import disasters
from benchmarks.runs import (
    DEADLINE_S,
    POLL_S,
    PROMPTS_PER_ROUND,
    SAMPLES,
    STEPS_PER_ROUND,
    SUPERVISOR,
    Run,
    chaos_settings,
    until,
    write_inputs,
)
from services.run_folder import RunFolder
from services.weights.reader import WeightReader

ROUNDS_PER_KILL = 2
"""On average; so the run is long enough for all kills and every part has work to lose."""
LAST_KILL = 2 / 3
"""Share of the rounds in which kills begin. What waits for a part to be back comes later, and before the run's end."""
MOST_DELAY_S = 1.0
"""A kill comes at a moment within this after the round that it waited for."""


@dataclass
class Kills:
    """What was done to the run, and how long each part was gone."""

    draw: random.Random
    kills: int
    counts: Counter[str] = field(default_factory=Counter)
    recovery_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def schedule(self, parts: Sequence[str], rounds: int) -> list[tuple[int, str]]:
        """(round to wait for, part) of every kill: the parts in turn, each turn in another order."""
        turns: list[str] = []
        while len(turns) < self.kills:
            turns += self.draw.sample(parts, len(parts))
        last = max(2, int(LAST_KILL * rounds))
        at = sorted(self.draw.randrange(1, last) for _ in range(self.kills))
        return list(zip(at, turns[: self.kills], strict=True))

    async def inflict(self, run: Run, schedule: Sequence[tuple[int, str]], say: Callable[[str], None]) -> None:
        """Kill after kill; the next may come before the last is overcome, but never to a part that is not back."""
        recoveries: dict[str, asyncio.Task[None]] = {}
        for number, (round_, part) in enumerate(schedule, 1):
            await until(lambda round_=round_: _ready(run, round_), f"round {round_} of the disturbed run")  # type: ignore[misc]
            await asyncio.sleep(self.draw.uniform(0, MOST_DELAY_S))
            await asyncio.gather(*(task for name, task in recoveries.items() if _same(name, part)))
            if not run.going:
                raise SystemExit(f"the run ended before kill {number} of {len(schedule)}: see {run.log}")
            say(f"kill {number} of {len(schedule)}: {part}, {run.rounds_done()} rounds done")
            recoveries[part] = await self._kill(run, part)
        await asyncio.gather(*recoveries.values())

    async def _kill(self, run: Run, part: str) -> asyncio.Task[None]:
        if part == SUPERVISOR:  # what it starts next is seen by the learner it starts
            learner = run.pid_of("learner")
            await self._end(run, part)
            await run.end()
            killed_at = time.monotonic()
            await run.start()
            return asyncio.create_task(self._recover(run, part, learner, killed_at))
        pid = await self._end(run, part)
        return asyncio.create_task(self._recover(run, part, pid, time.monotonic()))

    async def _end(self, run: Run, part: str) -> int:
        """Kill the part as soon as it lives, and return its pid."""
        give_up_at = time.monotonic() + DEADLINE_S
        while run.going and time.monotonic() < give_up_at:
            pid = run.pid_of(part)
            with contextlib.suppress(ProcessLookupError):
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                    self.counts[part] += 1
                    return pid
            await asyncio.sleep(POLL_S)
        raise SystemExit(f"{part} did not live within {DEADLINE_S:g} s or before the run ended: see {run.log}")

    async def _recover(self, run: Run, part: str, pid: int | None, killed_at: float) -> None:
        async def back() -> bool:
            return not run.going or await run.works(part, pid)

        await until(back, f"{part} to be back")
        self.recovery_s[part].append(time.monotonic() - killed_at)


def _same(killed: str, part: str) -> bool:
    """Whether a part may only be killed when `killed` is back: itself, and everything under a supervisor."""
    return killed == part or SUPERVISOR in (killed, part)


async def _ready(run: Run, round_: int) -> bool:
    return not run.going or run.rounds_done() >= round_


@dataclass(frozen=True, slots=True)
class RunCheck:
    """What a finished run's folder says."""

    lost: int
    """Rollouts that were never trained, of those the run is made of."""
    trained_twice: int
    weights: dict[int, str]
    """Version -> digest."""


def check_run(folder: RunFolder, rounds: int) -> RunCheck:
    """Counts by the records and, independently of them, by the optimizer's own count of its steps."""
    numbers = [metrics.round for metrics in folder.rounds()]
    trained = Counter(
        (record["round"], record["position"], record["sample"])
        for number in numbers
        for line in folder.rollouts_of(number).read_bytes().splitlines()
        for record in [json.loads(line)]
    )
    expected = {(r, i, s) for r in range(rounds) for i in range(PROMPTS_PER_ROUND) for s in range(SAMPLES)}
    newest = folder.checkpoint_of(folder.checkpointed()[-1])
    with safe_open(newest.state_of(0), framework="pt") as state:
        steps = int(state.get_tensor("steps"))
    surplus = steps - rounds * STEPS_PER_ROUND
    store = WeightReader(folder.weights, folder.run_id)
    store.load(rounds)  # every tensor's bytes are what the manifest says
    return RunCheck(
        lost=len(expected - trained.keys()) + max(0, -surplus),
        trained_twice=sum(trained.values()) - len(trained) + len(trained.keys() - expected) + max(0, surplus),
        weights={version: store.manifest(version).digest for version in store.versions()},
    )


async def chaos(
    folder: Path,
    *,
    kills: int,
    seed: int,
    engine: str = "scripted",
    parts: Sequence[str] = (),
    rounds: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The benchmark's result; no `parts`: all of them. Nothing that it started is left going."""
    began = time.monotonic()
    rounds = rounds or kills * ROUNDS_PER_KILL
    await asyncio.to_thread(write_inputs, folder, seed=seed, prompts=5 * PROMPTS_PER_ROUND)
    values = chaos_settings(folder, engine=engine, rounds=rounds)
    undisturbed: RunCheck | None = None
    if engine == "scripted":
        say("the undisturbed run")
        undisturbed = check_run(await Run(folder / "undisturbed", values).whole(), rounds)
    generators = [f"generator-{index}" for index in range(values["generator.count"])]
    everyone = list(parts) or ["redis", "services", "learner", *generators]
    if engine == "scripted" and not parts:
        everyone.append(SUPERVISOR)
    inflicted = Kills(random.Random(seed), kills)
    schedule = inflicted.schedule(everyone, rounds)
    say(f"the disturbed run: {kills} kills in {rounds} rounds, seed {seed}")
    run = Run(folder / "disturbed", values)
    check = check_run(await run.whole(lambda: inflicted.inflict(run, schedule, say)), rounds)
    return {
        "engine": engine,
        "seed": seed,
        "kills": sum(inflicted.counts.values()),
        "killed": dict(sorted(inflicted.counts.items())),
        "rounds": rounds,
        "lost": check.lost,
        "trained_twice": check.trained_twice,
        "bit_identical": None if undisturbed is None else check.weights == undisturbed.weights,
        "recovery_s": {
            part: {"median": round(statistics.median(seconds), 2), "max": round(max(seconds), 2)}
            for part, seconds in sorted(inflicted.recovery_s.items())
        },
        "seconds": round(time.monotonic() - began, 1),
    }


def passed(result: dict[str, Any]) -> bool:
    """Nothing lost, nothing trained twice, and the same bits where that can be asked."""
    return not result["lost"] and not result["trained_twice"] and result["bit_identical"] is not False


async def everything(options: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> bool:
    """The kills, then the other kinds, each with a line of its own; whether all went well."""
    well = True
    if options.kills:
        kills = folder / "kills"
        kills.mkdir()
        result = await chaos(kills, kills=options.kills, seed=options.seed, engine=options.engine, say=say)
        print(json.dumps(result) if options.json else json.dumps(result, indent=2), flush=True)
        well = passed(result)
    kinds = [kind for kind in disasters.KINDS if options.only is None or kind.name in options.only]
    if kinds:
        async for line in disasters.inflict_all(folder, kinds):
            print(json.dumps(line), flush=True)
            well = disasters.passed(line) and well
    return well


def main() -> int:
    names = [kind.name for kind in disasters.KINDS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--only", nargs="*", choices=names, help="of the other kinds only these")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--engine", choices=["scripted", "vllm"], default="scripted", help="for the kills")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, to look at them")
    parser.add_argument("--json", action="store_true", help="print nothing but JSON lines on standard output")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    folder = options.keep or Path(tempfile.mkdtemp(prefix="sept-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    well = asyncio.run(everything(options, folder.resolve(), say))
    if options.keep is None and well:
        shutil.rmtree(folder)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
