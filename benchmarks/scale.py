"""Where a run saturates as generators are added: everything real but the models, whose times are replayed.

    python -m benchmarks.scale --json
    python -m benchmarks.scale --generators 1 100 --generate-s 20 --response-tokens 1500 --train-s 30

Real: Redis, the HTTP endpoint, the learner's collector, the weight store, and on the generators' side leases, long
polls, downloads and heartbeats. Replayed: how long a response and a training round take (`--generate-s`, `--train-s`:
take them from a run's metrics). Every part has its own process; the CPU seconds it spends per task say how many tasks/s
one core of it bears, also where this machine is too small to get there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event as ProcessEvent
from pathlib import Path
from typing import Any

import numpy as np
import redis

from learner.publisher import Publisher, VersionContents
from learner.rollouts.collector import Collector, Interrupted
from services.config import DeadlinesConfig, ServicesConfig
from services.contracts import Heartbeat, Part, Rollout, Task, VersionSpan
from services.logs import configure_logs
from services.net import free_port
from services.run_folder import RunFolder
from services.server import serve
from services.streams.connection import Keys, connect, connect_async
from services.streams.embedded import EmbeddedRedis
from services.streams.events import EventLog
from services.streams.heartbeats import AsyncHeartbeats
from services.streams.rollouts import RolloutReader
from services.streams.tasks import Lease, TaskIssuer, TaskLeaser
from services.tensors import RawTensor
from services.weights.bundle import MEDIA_TYPE, unbundle
from services.weights.publisher import WeightPublisher

GENERATORS = (10, 100, 1000)
LEASE_S = 30.0
HEARTBEAT_S = 1.0
LONG_POLL_S = 20.0
MAX_HEAD_BYTES = 1 << 16
STALENESS = 1
STARTS_S = 300.0
STOP_S = 60.0
CHANGED = 0.01
"""Share of the elements that a round changes."""
SHORT = 0.9
"""Below this share of what was offered, generators waited for a round, or their simulation was too slow here."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """What is replayed."""

    generate_s: float
    train_s: float
    in_flight: int
    prompt_tokens: int
    response_tokens: int
    model_mb: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """One number of generators. CPU: cores in use."""

    generators: int
    offered_tasks_per_s: float
    tasks_per_s: float
    pulls_per_s: float
    weight_bytes_per_s: float
    rollout_bytes_per_s: float
    redis_cpu: float
    endpoint_cpu: float
    learner_cpu: float
    simulator_cpu: float
    redis_peak_mb: float
    learner_mb: float


@dataclass(frozen=True)
class World:
    """The addresses of one measurement."""

    folder: Path
    redis_url: str
    port: int
    load: Load
    generators: int

    @property
    def tasks_per_round(self) -> int:
        """One from every place of every generator, so that a round takes about as long as a response."""
        return max(128, self.generators * self.load.in_flight)


# -- the parts, each in a process of its own -------------------------------------------------------------------------


def be_endpoint(world: World) -> None:
    """The services' app, as `sept services` runs it."""
    configure_logs("services")
    serve(
        folder=RunFolder(world.folder),
        redis_url=world.redis_url,
        services=ServicesConfig(port=world.port),
        deadlines=DeadlinesConfig(),
    )


def be_learner(world: World, stop: ProcessEvent) -> None:
    """The loop's bookkeeping: issue, collect in order, publish, release; training is a wait."""
    configure_logs("learner")
    keys = Keys(RunFolder(world.folder).run_id)
    with connect(world.redis_url) as client:
        collector = Collector(TaskIssuer(client, keys), RolloutReader(client, keys), first_round=0)
        store = WeightPublisher(RunFolder(world.folder).weights, keys.run_id)
        publisher = Publisher(store, EventLog(client, keys))
        weights = _weights(world.load.model_mb)
        publisher.submit(0, VersionContents(weights)).result()
        collector.start()
        for round_ in range(STALENESS + 1):
            collector.expect(_tasks(world, round_))
        round_ = 0
        while not stop.is_set():
            try:
                for _ in collector.in_order(round_, deadline_s=600):
                    if stop.is_set():
                        return
            except Interrupted:
                return
            stop.wait(world.load.train_s)
            weights = _changed(weights, round_)
            publisher.submit(
                round_ + 1,
                VersionContents(weights),
                lambda version: collector.expect(_tasks(world, version + STALENESS)),
            )
            collector.release(before_round=round_)
            round_ += 1


def _tasks(world: World, round_: int) -> list[Task]:
    prompt = np.arange(world.load.prompt_tokens, dtype=np.int32)
    return [
        Task(
            task_id=f"r{round_:06d}-{index:06d}",
            round=round_,
            position=index,
            prompt_tokens=prompt,
            temperature=0.6,
            max_response_tokens=world.load.response_tokens,
            min_weight_version=max(0, round_ - STALENESS),
        )
        for index in range(world.tasks_per_round)
    ]


def _weights(megabytes: float) -> dict[str, RawTensor]:
    """One bfloat16 tensor of random values around 1 / 50."""
    values = np.random.default_rng(0).normal(0, 0.02, int(megabytes * 1e6 / 2)).astype(np.float32)
    return {"weight": RawTensor("BF16", (values.size,), (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8))}


def _changed(weights: dict[str, RawTensor], seed: int) -> dict[str, RawTensor]:
    bits = weights["weight"].data.view("<u2").copy()
    places = np.random.default_rng(seed).integers(0, bits.size, int(bits.size * CHANGED))
    bits[places] ^= 1
    return {"weight": RawTensor("BF16", (bits.size,), bits.view(np.uint8))}


# -- simulated generators ----------------------------------------------------------------------------------------------


class Line:
    """A connection to the endpoint that is kept, with as little of a client as a thousand in one process can bear."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def latest(self, after: int | None, digest: str | None) -> tuple[bytes, bytes] | None:
        """(Manifest, small delta or nothing) as the long poll answers; None when the version is still the same."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=MAX_HEAD_BYTES)
        reader, writer = self._streams
        held = "".join(
            f"&{name}={value}" for name, value in (("after", after), ("digest", digest)) if value is not None
        )
        request = f"GET /v1/weights/latest?timeout_s={LONG_POLL_S}{held} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        writer.write(f"{request}Accept: {MEDIA_TYPE}\r\n\r\n".encode())
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if " 204 " in status:
            return None
        if " 200 " not in status:
            raise ConnectionError(status)
        return unbundle(body) if headers["content-type"] == MEDIA_TYPE else (body, b"")

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


class Simulated:
    """A generator without an engine: real leases, completions, heartbeats, polls and downloads."""

    def __init__(self, world: World, name: str, counts: dict[str, int]) -> None:
        self._world = world
        self._name = name
        self._counts = counts
        self._random = random.Random(name)
        self._held: dict[bytes, Lease] = {}
        self._working: set[asyncio.Task[None]] = set()
        self._version = 0
        self._begun = 0
        self._stopping = False
        self.connected = asyncio.Event()

    def stop(self) -> None:
        """End `run` within about a second. A cancellation alone may end nothing but one command of redis-py."""
        self._stopping = True

    async def run(self) -> None:
        client = await connect_async(self._world.redis_url, deadline_s=60)
        self.connected.set()
        keys = Keys(RunFolder(self._world.folder).run_id)
        leaser = TaskLeaser(client, keys, self._name, LEASE_S)
        try:
            async with asyncio.TaskGroup() as group:
                background = [
                    group.create_task(self._follow()),
                    group.create_task(self._beat(leaser, AsyncHeartbeats(client, keys))),
                ]
                await self._serve(leaser, group)
                for task in [*background, *self._working]:
                    task.cancel()
        finally:
            await client.aclose()

    async def _serve(self, leaser: TaskLeaser, group: asyncio.TaskGroup) -> None:
        while not self._stopping:
            room = self._world.load.in_flight - len(self._held)
            if room == 0:
                await asyncio.sleep(min(1.0, self._world.load.generate_s / 10))
                continue
            for lease in await leaser.lease(room, 1.0):
                self._held[lease.entry_id] = lease
                work = group.create_task(self._work(leaser, lease))
                self._working.add(work)
                work.add_done_callback(self._working.discard)

    async def _work(self, leaser: TaskLeaser, lease: Lease) -> None:
        # The first ones end spread over the time of one, as if the generator had long been at work.
        shortest = 0.5 if self._begun >= self._world.load.in_flight else 0.0
        self._begun += 1
        await asyncio.sleep(self._world.load.generate_s * self._random.uniform(shortest, shortest + 1.0))
        await leaser.complete(lease, [self._rollout(lease.task)])
        del self._held[lease.entry_id]
        self._counts["tasks"] += 1

    def _rollout(self, task: Task) -> Rollout:
        tokens = self._world.load.response_tokens
        return Rollout(
            task_id=task.task_id,
            sample=0,
            round=task.round,
            position=task.position,
            prompt_tokens=task.prompt_tokens,
            response_tokens=np.arange(tokens, dtype=np.int32),
            finish_reason="length",
            temperature=task.temperature,
            spans=(VersionSpan(weight_version=task.min_weight_version, start=0, end=tokens),),
            generator_id=self._name,
            queued_s=0.0,
            generate_s=self._world.load.generate_s,
        )

    async def _follow(self) -> None:
        """Long-poll; a version's small delta comes with the answer, as to a generator one version behind."""
        digest: str | None = None
        line = Line(self._world.port)
        try:
            while True:
                answer = await line.latest(self._version, digest)
                if answer is None:
                    continue
                manifest, delta = answer
                published = json.loads(manifest)
                self._version, digest = published["weight_version"], published["digest"]
                self._counts["weight_bytes"] += len(delta)
                self._counts["pulls"] += 1
        finally:
            line.close()

    async def _beat(self, leaser: TaskLeaser, heartbeats: AsyncHeartbeats) -> None:
        renewed = time.monotonic()
        while not self._stopping:
            await heartbeats.send(
                Heartbeat(
                    part=Part.GENERATOR,
                    part_id=self._name,
                    state="generating",
                    shares={},
                    weight_version=self._version,
                    in_flight=len(self._held),
                    host="simulated",
                    pid=os.getpid(),
                    device="simulated",
                )
            )
            if time.monotonic() - renewed > LEASE_S / 3:
                renewed = time.monotonic()
                await leaser.renew(list(self._held.values()))
            await asyncio.sleep(HEARTBEAT_S)


async def simulate(world: World, pids: dict[str, int]) -> Row:
    """Let the generators work for a while; measure after what it takes to fill them."""
    counts = {"tasks": 0, "pulls": 0, "weight_bytes": 0}
    await _until_published(world.port)
    simulated = [Simulated(world, f"generator-{index}", counts) for index in range(world.generators)]
    running = [asyncio.create_task(each.run()) for each in simulated]
    async with asyncio.timeout(STARTS_S):
        await asyncio.gather(*(each.connected.wait() for each in simulated))
    await asyncio.sleep(world.load.generate_s)
    before, cpu_before, started = dict(counts), _cpu(pids), time.monotonic()
    done, _ = await asyncio.wait(running, timeout=world.load.seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
    took_s = time.monotonic() - started
    cpu = {name: (after - cpu_before[name]) / took_s for name, after in _cpu(pids).items()}
    rate = {name: (count - before[name]) / took_s for name, count in counts.items()}
    for each in simulated:
        each.stop()
    await asyncio.wait(running, timeout=STOP_S)
    with redis.Redis.from_url(world.redis_url) as client:
        info: Any = client.info("memory")
    tokens = world.load.prompt_tokens + world.load.response_tokens
    return Row(
        generators=world.generators,
        offered_tasks_per_s=world.generators * world.load.in_flight / world.load.generate_s,
        tasks_per_s=rate["tasks"],
        pulls_per_s=rate["pulls"],
        weight_bytes_per_s=rate["weight_bytes"],
        rollout_bytes_per_s=rate["tasks"] * 4 * tokens,
        redis_cpu=cpu["redis"],
        endpoint_cpu=cpu["endpoint"],
        learner_cpu=cpu["learner"],
        simulator_cpu=cpu["simulator"],
        redis_peak_mb=info["used_memory_peak"] / 1e6,
        learner_mb=resident_mb(pids["learner"]),
    )


async def _until_published(port: int) -> None:
    async with asyncio.timeout(STARTS_S):
        while True:
            line = Line(port)
            try:
                if await line.latest(None, None):
                    return
            except ConnectionError:
                await asyncio.sleep(0.1)  # the endpoint is on its way
            finally:
                line.close()


# -- the measurement ---------------------------------------------------------------------------------------------------


@contextmanager
def parts(world: World) -> Iterator[dict[str, int]]:
    """Redis, endpoint and learner, running; their process ids."""
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    server = EmbeddedRedis(world.folder / "redis", _port_of(world.redis_url), _password_of(world.redis_url))
    with subprocess.Popen(server.command(), stdout=subprocess.DEVNULL) as valkey:
        endpoint = spawn.Process(target=be_endpoint, args=(world,))
        learner = spawn.Process(target=be_learner, args=(world, stop))
        try:
            endpoint.start()
            learner.start()
            assert endpoint.pid is not None and learner.pid is not None
            yield {"redis": valkey.pid, "endpoint": endpoint.pid, "learner": learner.pid, "simulator": os.getpid()}
        finally:
            stop.set()
            for process in (learner, endpoint):
                process.terminate()
                process.join()
            valkey.terminate()


def measure(generators: int, load: Load) -> Row:
    """One row, in a world of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name) / "run").create().path
        password = "scale-benchmark-only"  # noqa: S105 - a server of its own, on loopback, for these seconds
        world = World(folder, f"redis://:{password}@127.0.0.1:{free_port()}/0", free_port(), load, generators)
        with parts(world) as pids:
            return asyncio.run(simulate(world, pids))


def saturation(rows: list[Row], load: Load) -> dict[str, Any]:
    """What one core of each part bears, by its CPU seconds per task or pull in the row where it worked hardest."""
    per_generator, round_s = load.in_flight / load.generate_s, max(load.train_s, load.generate_s)
    found: dict[str, Any] = {}
    for part in ("redis", "learner", "endpoint"):
        row = max(rows, key=lambda row: float(getattr(row, f"{part}_cpu")))
        cpu: float = getattr(row, f"{part}_cpu")
        done, name = (row.pulls_per_s, "pulls_per_s") if part == "endpoint" else (row.tasks_per_s, "tasks_per_s")
        if cpu > 0 and done > 0:
            bears = done / cpu
            generators = bears * round_s if part == "endpoint" else bears / per_generator
            found[part] = {name: round(bears), "generators": round(generators), "seen_at": row.generators}
    short = [row.generators for row in rows if row.tasks_per_s < SHORT * row.offered_tasks_per_s]
    return {
        "one_core_bears": found,
        "first": min(found, key=lambda part: int(found[part]["generators"])) if found else None,
        "fell_short_at": short,
    }


def _cpu(pids: dict[str, int]) -> dict[str, float]:
    return {name: cpu_seconds(pid) for name, pid in pids.items()}


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def _password_of(url: str) -> str:
    return url.partition("://:")[2].partition("@")[0]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Where a run saturates as generators are added.")
    parser.add_argument("--generators", type=int, nargs="+", default=list(GENERATORS))
    parser.add_argument("--generate-s", type=float, default=10.0, help="seconds of one response")
    parser.add_argument("--train-s", type=float, default=2.0, help="seconds of one round's training")
    parser.add_argument("--in-flight", type=int, default=8, help="responses at once in one generator")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--response-tokens", type=int, default=1024)
    parser.add_argument("--model-mb", type=float, default=8.0, help="size of the published weights")
    parser.add_argument("--seconds", type=float, default=40.0, help="measured time per number of generators")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    configure_logs("simulator")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    load = Load(**{name: value for name, value in vars(args).items() if name not in ("generators", "json")})
    rows = []
    for count in args.generators:
        rows.append(measure(count, load))
        if not args.json:
            print({name: round(value, 2) for name, value in asdict(rows[-1]).items()})
    result = {"load": asdict(load), "rows": [asdict(row) for row in rows], "saturation": saturation(rows, load)}
    print(json.dumps(result, indent=1) if args.json else result["saturation"])


if __name__ == "__main__":
    main()
