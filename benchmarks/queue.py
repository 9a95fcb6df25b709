"""Rollouts per second through the queue's own code, against the same commands sent by a bare client.

    python -m benchmarks.queue --json

Every rollout is a task issued, leased, completed, read and deleted: `services.streams` as learner and generators use
it, on a Valkey server of its own, with 1, 8 and 64 producers (generators that lease and complete, in one process). The
peer (`benchmarks.queue_peer`) sends the very same commands and payloads over hiredis, without contracts, validation,
retries or asyncio, completes as many tasks in one request, and waits for every answer as the queue does.
redis-benchmark cannot take its place: a completion names the entry that its lease returned. Runs alternate; each number
is the median.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import redis

from benchmarks.queue_peer import LEASED_AT_ONCE, BareQueue
from services.contracts import Rollout, Task, VersionSpan
from services.net import free_port
from services.streams.connection import Keys, connect, connect_async
from services.streams.embedded import EmbeddedRedis
from services.streams.rollouts import RolloutReader
from services.streams.tasks import TaskIssuer, TaskLeaser

PRODUCERS = (1, 8, 64)
SIZES = {"2kB": (128, 384), "12kB": (512, 2560)}
"""Prompt and response tokens of four bytes each."""
LEASE_S = 600.0
STEPS = ("issue", "lease_complete", "read", "delete")


@dataclass
class Passage:
    """All rollouts once through the queue."""

    seconds: dict[str, float]
    lost: int
    bytes_each: float
    """Redis' memory per rollout while all of them are queued."""

    def per_s(self, rollouts: int) -> float:
        return rollouts / sum(self.seconds.values())


def task_of(index: int, prompt_tokens: int, response_tokens: int) -> Task:
    return Task(
        task_id=f"r000000-{index:05d}",
        round=0,
        position=index,
        prompt_tokens=np.full(prompt_tokens, index % 100_000, np.int32),
        temperature=0.6,
        max_response_tokens=response_tokens,
        min_weight_version=0,
    )


def rollout_of(task: Task) -> Rollout:
    return Rollout(
        task_id=task.task_id,
        sample=0,
        round=0,
        position=task.position,
        prompt_tokens=task.prompt_tokens,
        response_tokens=np.full(task.max_response_tokens, task.position % 100_000, np.int32),
        finish_reason="length",
        temperature=task.temperature,
        spans=(VersionSpan(weight_version=0, start=0, end=task.max_response_tokens),),
        generator_id="generator-0",
        queued_s=0.0,
        generate_s=1.0,
    )


async def produce(url: str, keys: Keys, producers: int) -> float:
    """Lease and complete until nothing is left; the seconds that took, once all were connected."""

    async def one(leaser: TaskLeaser) -> None:
        while leases := await leaser.lease(LEASED_AT_ONCE, 0):
            await asyncio.gather(*(leaser.complete(lease, [rollout_of(lease.task)]) for lease in leases))

    clients = [await connect_async(url) for _ in range(producers)]
    leasers = [TaskLeaser(client, keys, f"generator-{n}", LEASE_S) for n, client in enumerate(clients)]
    await asyncio.gather(*(client.ping() for client in clients))
    began = time.perf_counter()
    await asyncio.gather(*map(one, leasers))
    seconds = time.perf_counter() - began
    for client in clients:
        await client.aclose()
    return seconds


def pass_through(url: str, tasks: Sequence[Task], producers: int) -> Passage:
    """The project's own code."""
    keys = Keys("queue-benchmark")
    with connect(url) as client:
        client.flushall()
        issuer, reader = TaskIssuer(client, keys), RolloutReader(client, keys)
        watch = StopWatch()
        issuer.issue(tasks)
        watch.lap("issue")
        watch.laps["lease_complete"] = asyncio.run(produce(url, keys, producers))
        bytes_each = memory(client, keys.rollouts) / len(tasks)
        watch.skip()
        entries = []
        while arrived := reader.read(0):
            entries += arrived
        watch.lap("read")
        reader.delete([entry_id for entry_id, _ in entries])
        watch.lap("delete")
        wanted = {f"{task.task_id}.0" for task in tasks}
        left = client.xlen(keys.tasks) + client.xlen(keys.rollouts)
    arrived_ids = [rollout.rollout_id for _, rollout in entries]
    return Passage(
        watch.laps, len(wanted ^ set(arrived_ids)) + len(arrived_ids) - len(set(arrived_ids)) + left, bytes_each
    )


def pass_bare(url: str, tasks: Sequence[Task], producers: int) -> Passage:
    """The same commands from the bare client; payloads are encoded beforehand."""
    keys = Keys("queue-benchmark")
    with connect(url) as client:
        client.flushall()
    with BareQueue(url, keys, producers) as bare:
        bare.prepare(tasks, [rollout_of(task) for task in tasks])
        watch = StopWatch()
        for step in (bare.issue, bare.lease_and_complete, bare.read, bare.delete):
            step()
            watch.lap(STEPS[len(watch.laps)])
        return Passage(watch.laps, len(tasks) - bare.read_back, 0.0)


class StopWatch:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.skip()

    def skip(self) -> None:
        """What has passed since the last lap belongs to none."""
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        self.laps[name] = time.perf_counter() - self._since
        self.skip()


def memory(client: redis.Redis, key: str) -> int:
    """Bytes that Redis takes for all of a key; its clients' buffers do not count."""
    used: Any = client.memory_usage(key, samples=0)
    return int(used)


@contextmanager
def server() -> Iterator[str]:
    """The address of a Valkey server that lives for the block, configured as a run's own."""
    with tempfile.TemporaryDirectory(prefix="sept-queue-") as name:
        embedded = EmbeddedRedis(Path(name), free_port(), secrets.token_urlsafe(24))
        with subprocess.Popen(embedded.command(), stdout=subprocess.DEVNULL) as process:
            try:
                yield embedded.url
            finally:
                process.terminate()


def measure(url: str, size: str, producers: int, rollouts: int, repeats: int) -> dict[str, Any]:
    """One row of the result."""
    tasks = [task_of(index, *SIZES[size]) for index in range(rollouts)]
    ours, bare = [], []
    for _ in range(repeats):
        bare.append(pass_bare(url, tasks, producers))
        ours.append(pass_through(url, tasks, producers))
    speed, limit = (median(passage.per_s(rollouts) for passage in passages) for passages in (ours, bare))
    return {
        "size": size,
        "producers": producers,
        "rollouts_per_s": round(speed),
        "bare_hiredis_per_s": round(limit),
        "ratio_to_bare_hiredis": round(speed / limit, 3),
        "us_each": {step: round(1e6 * median(p.seconds[step] for p in ours) / rollouts) for step in STEPS},
        "bare_us_each": {step: round(1e6 * median(p.seconds[step] for p in bare) / rollouts) for step in STEPS},
        "redis_bytes_each": round(median(passage.bytes_each for passage in ours)),
        "lost": sum(passage.lost for passage in [*ours, *bare]),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=2000)
    parser.add_argument("--producers", type=int, nargs="+", default=list(PRODUCERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    options = parser.parse_args(argv)
    with server() as url:
        rows = [measure(url, size, n, options.rollouts, options.repeats) for size in SIZES for n in options.producers]
    result = {"rollouts": options.rollouts, "lost": sum(row["lost"] for row in rows), "rows": rows}
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
