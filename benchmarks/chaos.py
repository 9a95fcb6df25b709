"""Kills the parts of a real run at random moments and checks that it becomes the run it would have been.

    python -m benchmarks.chaos --kills 30 --json
    python -m benchmarks.chaos --engine vllm --kills 4 --json

Two runs of `sept run` on the same tiny model, prompts and seed: one in peace, one in which redis, services, learner,
generators and the supervisor itself are killed with SIGKILL, in an order and at moments drawn from a printed seed. With
the scripted engine every answer is a function of its task and of the very bytes of the weights that sampled it, and
max_staleness is 0: a single token from a wrong version, a rollout lost or trained twice changes the final weights.
Each part's recovery is the time from the kill until its successor does the part's work again.
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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis.asyncio
from redis.exceptions import RedisError
from safetensors import safe_open

from deploy import endpoints
from services.contracts import Heartbeat
from services.errors import SeptError
from services.runfolder import RunFolder
from services.streams.connection import Keys
from services.streams.heartbeats import AsyncHeartbeats
from services.weights.store import WeightStore

PROMPTS_PER_ROUND = 8
SAMPLES = 2
STEPS_PER_ROUND = 2
ROUNDS_PER_KILL = 2
"""On average; so the run is long enough for all kills and every part has work to lose."""
MOST_DELAY_S = 1.0
"""A kill comes at a moment within this after the round that it waited for."""
DEADLINE_S = 300.0
POLL_S = 0.05
SUPERVISOR = "supervisor"
END = "<end>"


def write_inputs(folder: Path, seed: int) -> None:
    """A random Qwen2 with a tokenizer of single bytes, and more prompts than a round has."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, END: len(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast: Any = PreTrainedTokenizerFast  # untyped in transformers
    fast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder / "model")
    torch.manual_seed(seed)
    qwen2: Any = Qwen2ForCausalLM
    model = qwen2(
        Qwen2Config(
            vocab_size=len(vocabulary) + 1,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=len(vocabulary),
        )
    )
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    questions = [{"question": f"{number}*{number + 1}="} for number in range(100, 100 + 5 * PROMPTS_PER_ROUND)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))


def settings(inputs: Path, *, engine: str, rounds: int) -> dict[str, Any]:
    """Short leases and beats, checkpoints that lag behind, small work."""
    return {
        "model.path": inputs / "model",
        "data.path": inputs / "prompts.jsonl",
        "data.chat_template": "none",
        "data.max_prompt_tokens": 32,
        "sampling.max_response_tokens": 24,
        "sampling.rollouts_per_prompt": SAMPLES,
        "training.rounds": rounds,
        "training.prompts_per_round": PROMPTS_PER_ROUND,
        "training.steps_per_round": STEPS_PER_ROUND,
        "training.max_staleness": 0 if engine == "scripted" else 1,
        "training.learning_rate": 1e-3,
        "training.warmup_steps": 2,
        "training.device": "cpu",
        "checkpoint.every_rounds": 3,
        "weight_sync.anchor_every": 5,
        "weight_sync.keep_versions": 1000,
        "generator.engine": engine,
        "generator.count": 2 if engine == "scripted" else 1,
        "generator.max_in_flight": 8,
        "generator.cpu_cache_gib": 0.25,
        "redis.lease_s": 3,
        "services.port": 0,
        "heartbeat.every_s": 0.2,
        "heartbeat.lost_after_s": 2,
        "deadlines.startup_s": DEADLINE_S,
        "deadlines.rollouts_s": DEADLINE_S,
        "deadlines.weights_s": DEADLINE_S,
        "deadlines.drain_s": 5,
    }


class Run:
    """One `sept run` in a folder: started, killed, started again, waited for."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder = RunFolder(folder)
        self.log = folder.with_suffix(".log")
        self._config = folder.with_suffix(".toml")
        self._sets = [f"{name}={value}" for name, value in {**values, "run.dir": folder}.items()]
        self._config.write_text("")
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """A new supervisor; a folder that was run before is resumed."""
        command = [sys.executable, "-m", "deploy.cli", "run", str(self._config)]
        command += [argument for text in self._sets for argument in ("--set", text)]
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            )

    @property
    def going(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def end(self) -> int:
        """The exit code of `sept run`."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), DEADLINE_S)

    async def stop(self) -> None:
        """However it stands: nothing of it is left going afterwards."""
        if self._process is not None and self.going:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), 20)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    def pid_of(self, part: str) -> int | None:
        """The newest process of the part, as the supervisor noted it."""
        if part == SUPERVISOR:
            return self._process.pid if self._process is not None else None
        started = [event for event in self._journal() if event["event"] == "part_started" and event["part"] == part]
        return int(started[-1]["pid"]) if started else None

    def rounds_done(self) -> int:
        return sum(1 for _ in self.folder.rounds())

    def _journal(self) -> Iterator[dict[str, Any]]:
        path = self.folder.logs / "supervisor.log"
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError):  # a line that the supervisor was killed in
                yield json.loads(line)

    async def works(self, part: str, since_pid: int | None) -> bool:
        """Whether another process than `since_pid` does the part's work."""
        if part == SUPERVISOR:
            return await self.works("learner", since_pid)
        if (pid := self.pid_of(part)) is None or pid == since_pid or (where := endpoints.read(self.folder)) is None:
            return False
        with contextlib.suppress(RedisError, SeptError, httpx.HTTPError, OSError):
            if part == "services":
                async with httpx.AsyncClient(trust_env=False, timeout=2) as http:
                    return (await http.get(f"{where.services_url}/readyz")).is_success
            async with redis.asyncio.Redis.from_url(where.redis_url, socket_timeout=2, protocol=2) as client:
                if part == "redis":
                    return bool(await client.ping())
                beats = await AsyncHeartbeats(client, Keys(self.folder.run_id)).read_all()
                return any(beat.part_id == part and _at_work(beat, pid) for beat, _ in beats)
        return False


def _at_work(beat: Heartbeat, pid: int) -> bool:
    return beat.pid == pid and beat.state != "starting"


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
        at = sorted(self.draw.randrange(1, rounds - 1) for _ in range(self.kills))
        return list(zip(at, turns[: self.kills], strict=True))

    async def inflict(self, run: Run, schedule: Sequence[tuple[int, str]], say: Callable[[str], None]) -> None:
        """Kill after kill; the next may come before the last is overcome, but never to a part that is not back."""
        recoveries: dict[str, asyncio.Task[None]] = {}
        for number, (round_, part) in enumerate(schedule, 1):
            await _until(lambda round_=round_: _ready(run, round_), f"round {round_} of the disturbed run")  # type: ignore[misc]
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
        while time.monotonic() < give_up_at:
            pid = run.pid_of(part)
            with contextlib.suppress(ProcessLookupError):
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                    self.counts[part] += 1
                    return pid
            await asyncio.sleep(POLL_S)
        raise SystemExit(f"{part} did not live within {DEADLINE_S:g} s: see {run.log}")

    async def _recover(self, run: Run, part: str, pid: int | None, killed_at: float) -> None:
        async def back() -> bool:
            return not run.going or await run.works(part, pid)

        await _until(back, f"{part} to be back")
        self.recovery_s[part].append(time.monotonic() - killed_at)


def _same(killed: str, part: str) -> bool:
    """Whether a part may only be killed when `killed` is back: itself, and everything under a supervisor."""
    return killed == part or SUPERVISOR in (killed, part)


async def _ready(run: Run, round_: int) -> bool:
    return not run.going or run.rounds_done() >= round_


async def _until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    while not await condition():
        if time.monotonic() > give_up_at:
            raise SystemExit(f"waited {DEADLINE_S:g} s for {what}")
        await asyncio.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a finished run's folder says."""

    lost: int
    """Rollouts that were never trained, of those the run is made of."""
    trained_twice: int
    weights: dict[int, str]
    """Version -> digest."""


def judge(folder: RunFolder, rounds: int) -> Verdict:
    """Counts by the records and, independently of them, by the optimizer's own count of its steps."""
    numbers = [metrics.round for metrics in folder.rounds()]
    trained = Counter(
        (record["round"], record["index"], record["sample"])
        for number in numbers
        for line in (folder.rollouts / f"round-{number:06d}.jsonl").read_text().splitlines()
        for record in [json.loads(line)]
    )
    expected = {(r, i, s) for r in range(rounds) for i in range(PROMPTS_PER_ROUND) for s in range(SAMPLES)}
    newest = max(folder.checkpoints.glob("v*"))
    with safe_open(newest / "state-00000.safetensors", framework="pt") as state:
        steps = int(state.get_tensor("steps"))
    surplus = steps - rounds * STEPS_PER_ROUND
    store = WeightStore(folder.weights, folder.run_id, anchor_every=5, keep_versions=1000)
    store.load(rounds)  # every tensor's bytes are what the manifest says
    return Verdict(
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
    await asyncio.to_thread(write_inputs, folder, seed)
    values = settings(folder, engine=engine, rounds=rounds)
    undisturbed: Verdict | None = None
    if engine == "scripted":
        say("the undisturbed run")
        undisturbed = judge(await _whole(Run(folder / "undisturbed", values)), rounds)
    generators = [f"generator-{index}" for index in range(values["generator.count"])]
    everyone = list(parts) or ["redis", "services", "learner", *generators]
    if engine == "scripted" and not parts:
        everyone.append(SUPERVISOR)
    inflicted = Kills(random.Random(seed), kills)
    schedule = inflicted.schedule(everyone, rounds)
    say(f"the disturbed run: {kills} kills in {rounds} rounds, seed {seed}")
    run = Run(folder / "disturbed", values)
    verdict = judge(await _whole(run, lambda: inflicted.inflict(run, schedule, say)), rounds)
    return {
        "engine": engine,
        "seed": seed,
        "kills": sum(inflicted.counts.values()),
        "killed": dict(sorted(inflicted.counts.items())),
        "rounds": rounds,
        "lost": verdict.lost,
        "trained_twice": verdict.trained_twice,
        "bit_identical": None if undisturbed is None else verdict.weights == undisturbed.weights,
        "recovery_s": {
            part: {"median": round(statistics.median(seconds), 2), "max": round(max(seconds), 2)}
            for part, seconds in sorted(inflicted.recovery_s.items())
        },
        "seconds": round(time.monotonic() - began, 1),
    }


async def _whole(run: Run, meanwhile: Callable[[], Awaitable[None]] | None = None) -> RunFolder:
    """The folder of the run once it has ended by itself."""
    try:
        await run.start()
        if meanwhile is not None:
            await meanwhile()
        code = await run.end()
    finally:
        await run.stop()
    if code != 0:
        raise SystemExit(f"the run ended with exit code {code}:\n{run.log.read_text()[-4000:]}")
    return run.folder


def passed(result: dict[str, Any]) -> bool:
    """Nothing lost, nothing trained twice, and the same bits where that can be asked."""
    return not result["lost"] and not result["trained_twice"] and result["bit_identical"] is not False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--engine", choices=["scripted", "vllm"], default="scripted")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, to look at them")
    parser.add_argument("--json", action="store_true", help="print nothing but the result on standard output")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    folder = options.keep or Path(tempfile.mkdtemp(prefix="sept-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    result = asyncio.run(
        chaos(folder.resolve(), kills=options.kills, seed=options.seed, engine=options.engine, say=say)
    )
    if options.keep is None and passed(result):
        shutil.rmtree(folder)
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))
    return 0 if passed(result) else 1


if __name__ == "__main__":
    sys.exit(main())
