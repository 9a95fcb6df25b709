"""Whole runs for benchmarks: a tiny model with prompts, and `sept run` started, watched, pinned to cores and ended.

Knows a run by its folder, its processes and its heartbeats, as an operator does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import redis.asyncio
from redis.exceptions import RedisError

from deploy import endpoints
from services.contracts import Heartbeat, RoundMetrics
from services.errors import SeptError
from services.run_folder import RunFolder
from services.streams.connection import Keys
from services.streams.heartbeats import AsyncHeartbeats

DEADLINE_S = 300.0
POLL_S = 0.05
SUPERVISOR = "supervisor"
END = "<end>"
PROMPT_TOKENS = 32
"""No prompt of `write_inputs` is longer."""
PROMPTS_PER_ROUND = 8
SAMPLES = 2
STEPS_PER_ROUND = 2
"""Of a run to be disturbed."""


def write_inputs(folder: Path, *, seed: int, prompts: int, hidden: int = 64, layers: int = 2) -> None:
    """`model/`, a random Qwen2 with a tokenizer of single bytes, and `prompts.jsonl`."""
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
            hidden_size=hidden,
            intermediate_size=hidden * 3 // 2,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,  # the smallest head that vLLM's CPU attention takes
            num_key_value_heads=hidden // 32,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=len(vocabulary),
        )
    )
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    questions = [{"question": f"{number}*{number + 1}="} for number in range(100, 100 + prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))


def base_settings(inputs: Path) -> dict[str, Any]:
    """A run on what `write_inputs` wrote, on CPU, with ports of its own."""
    return {
        "model.path": inputs / "model",
        "data.path": inputs / "prompts.jsonl",
        "data.chat_template": "none",
        "data.max_prompt_tokens": PROMPT_TOKENS,
        "training.learning_rate": 1e-3,
        "training.warmup_steps": 2,
        "training.device": "cpu",
        "generator.cpu_cache_gib": 0.25,
        "services.port": 0,
        "deadlines.startup_s": DEADLINE_S,
        "deadlines.rollouts_s": DEADLINE_S,
        "deadlines.weights_s": DEADLINE_S,
    }


def chaos_settings(inputs: Path, *, engine: str, rounds: int) -> dict[str, Any]:
    """Short leases and beats, checkpoints that lag behind, small work: a run to be disturbed."""
    return base_settings(inputs) | {
        "sampling.max_response_tokens": 24,
        "sampling.rollouts_per_prompt": SAMPLES,
        "training.rounds": rounds,
        "training.prompts_per_round": PROMPTS_PER_ROUND,
        "training.steps_per_round": STEPS_PER_ROUND,
        "training.max_staleness": 0 if engine == "scripted" else 1,
        "checkpoint.every_rounds": 3,
        "generator.engine": engine,
        "generator.count": 2 if engine == "scripted" else 1,
        "generator.max_in_flight": 8,
        "redis.lease_s": 3,
        "deadlines.drain_s": 5,
    }


class Run:
    """One `sept run` in a folder: started, killed, started again, waited for."""

    def __init__(self, folder: Path, values: Mapping[str, Any]) -> None:
        self.folder = RunFolder(folder)
        self.log = folder.with_suffix(".log")
        self._config = folder.with_suffix(".toml")
        self._sets = [f"{name}={value}" for name, value in {**values, "run.dir": folder}.items()]
        self._config.parent.mkdir(parents=True, exist_ok=True)
        self._config.write_text("")
        self._process: asyncio.subprocess.Process | None = None

    def command(self) -> list[str]:
        """What starts a supervisor."""
        command = [sys.executable, "-m", "sept", "run", str(self._config)]
        return command + [argument for text in self._sets for argument in ("--set", text)]

    async def start(self) -> None:
        """A new supervisor; a folder that was run before is resumed."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "SEPT_LOG": "json"},
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
                await asyncio.wait_for(self._process.wait(), 40)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def whole(self, meanwhile: Callable[[], Awaitable[None]] | None = None) -> RunFolder:
        """Start it; its folder once it has ended by itself."""
        try:
            await self.start()
            if meanwhile is not None:
                await meanwhile()
            code = await self.end()
        finally:
            await self.stop()
        if code != 0:
            raise SystemExit(f"the run ended with exit code {code}:\n{self.log.read_text()[-4000:]}")
        return self.folder

    def pid_of(self, part: str) -> int | None:
        """The newest process of the part, as the supervisor noted it."""
        if part == SUPERVISOR:
            return self._process.pid if self._process is not None else None
        started = [event for event in self.events(SUPERVISOR) if event["event"] == "part_started"]
        pids = [int(event["pid"]) for event in started if event["part"] == part]
        return pids[-1] if pids else None

    def rounds_done(self) -> int:
        return sum(1 for _ in self.folder.rounds())

    def events(self, part: str) -> Iterator[dict[str, Any]]:
        """The lines of a part's log that are events, oldest first."""
        path = self.folder.log_of(part)
        for line in path.read_bytes().splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError):  # of a library, or one that the part was killed in
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    async def pin(self, cores: Mapping[str, int]) -> None:
        """Bind parts (by name) to one core each as soon as they live; what they start later inherits it."""
        for part, core in cores.items():

            async def lives(part: str = part) -> bool:
                return self.pid_of(part) is not None

            await until(lives, f"{part} to start")
            pin_process(self.pid_of(part), core)

    async def beats(self) -> list[Heartbeat]:
        """The last heartbeat of every part; none while Redis is away."""
        if (where := endpoints.read(self.folder)) is None:
            return []
        with contextlib.suppress(RedisError, SeptError, OSError):
            async with redis.asyncio.Redis.from_url(where.redis_url, socket_timeout=2, protocol=2) as client:
                return [beat for beat, _ in await AsyncHeartbeats(client, Keys(self.folder.run_id)).read_all()]
        return []

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
            if part == "redis":
                async with redis.asyncio.Redis.from_url(where.redis_url, socket_timeout=2, protocol=2) as client:
                    return bool(await client.ping())
        return any(beat.part_id == part and _at_work(beat, pid) for beat in await self.beats())


def pin_process(pid: int | None, core: int) -> None:
    """Bind all threads of a process to one core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def two_cores() -> tuple[int, int]:
    """One for each side of a run, as far apart as there are."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("this benchmark gives each side a core of its own, and this process may use only one")
    return cores[0], cores[-1]


def per_s(rounds: list[RoundMetrics]) -> float:
    """Rollouts per second over these rounds."""
    return sum(line.rollouts for line in rounds) / sum(line.round_s for line in rounds)


def answers(folder: RunFolder) -> list[dict[str, Any]]:
    """What was recorded of every rollout, rounds in order."""
    paths = [path for _, path in folder.rollout_files()]
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def completions(folder: RunFolder) -> list[tuple[float, int]]:
    """(seconds since the first lease, response tokens) of every rollout in the order of their completion.

    For a run whose tasks were all issued at once, as those of a fixed data set are.
    """
    records = answers(folder)
    first = min(record["queued_s"] for record in records)
    return sorted((record["queued_s"] + record["generate_s"] - first, record["response_tokens"]) for record in records)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Ask again and again; a condition that never comes true ends the benchmark."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not await condition():
        if time.monotonic() > give_up_at:
            raise SystemExit(f"waited {DEADLINE_S:g} s for {what}")
        await asyncio.sleep(POLL_S)


def _at_work(beat: Heartbeat, pid: int) -> bool:
    return beat.pid == pid and beat.state != "starting"
