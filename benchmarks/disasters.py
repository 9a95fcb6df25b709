"""What else than kills may happen to a run: stops, damage, full disks, forgeries, a second learner, a lost terminal.

`python -m benchmarks.chaos` inflicts them. Each kind disturbs a run like that of the kills there and asks for the same
weights, nothing lost and nothing trained twice. Records cannot be made again: `records_lost` counts the rounds whose
records the run says are gone. Where nothing could go on (`refused`), the run has to end with a text that names the
cause. The disk kind mounts a file system and needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from safetensors import safe_open

from benchmarks.runs import (
    POLL_S,
    PROMPTS_PER_ROUND,
    SAMPLES,
    STEPS_PER_ROUND,
    Run,
    chaos_settings,
    until,
    write_inputs,
)
from deploy import endpoints
from deploy.same_code import with_same_code
from learner.monitoring.records import Records
from services import durable
from services.contracts import Rollout, VersionSpan
from services.errors import SeptError
from services.net import free_port
from services.run_folder import RunFolder
from services.streams.connection import Keys
from services.streams.embedded import EmbeddedRedis
from services.streams.wire import decode_task, encode_rollout
from services.weights.reader import WeightReader

ROUNDS = 12
FIRST = 3
"""Rounds that are done before anything happens."""
LONGER_THAN_A_LEASE_S = 6.0
TERMINAL_S = 30.0
DISK_BYTES = 48 << 20

Disturb = Callable[[Run], Awaitable[None]]

SECOND_LEARNER = """
import sys
from pathlib import Path
from deploy.load_settings import load
from deploy.settings import redis_url
from learner.run import run_learner
from services.run_folder import RunFolder
settings = load(Path(sys.argv[1]), (), join=True)
print(run_learner(RunFolder(settings.run.dir), settings, redis_url=redis_url(settings)))
"""
"""A learner as `sept learner` starts it, without the lock of the folder."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of disaster; `values` are settings of its run."""

    name: str
    disturb: Disturb
    refused: str = ""
    """What the run's last words must hold, where it cannot go on."""


# -- what happens -----------------------------------------------------------------------------------------------------


async def has_done(run: Run, rounds: int) -> None:
    """Wait until so many rounds are recorded, or the run has ended."""

    async def done() -> bool:
        return not run.going or run.rounds_done() >= rounds

    await until(done, f"round {rounds} of {run.folder.path}")


def stopped(part: str) -> Disturb:
    """SIGSTOP for longer than a lease, then SIGCONT."""

    async def disturb(run: Run) -> None:
        await has_done(run, FIRST)
        pid = run.pid_of(part)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(LONGER_THAN_A_LEASE_S)
        os.kill(pid, signal.SIGCONT)

    return disturb


async def second_learner(run: Run) -> None:
    """The learner stops, another one takes over without its lock, and the first one wakes up."""
    await has_done(run, FIRST)
    first = run.pid_of("learner")
    assert first is not None
    await stop_between_writes(run.folder, first)
    with run.folder.log_of("second").open("wb") as log:
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", SECOND_LEARNER, str(run.folder.config)),
            env=with_same_code(os.environ),
            stdout=log,
            stderr=log,
        )
    try:
        await has_done(run, run.rounds_done() + 2)
    finally:
        os.kill(first, signal.SIGCONT)
    await second.wait()


async def stop_between_writes(folder: RunFolder, learner: int) -> None:
    """SIGSTOP at a moment in which the learner does not hold the lock of its fence: else nobody could take over."""
    while True:
        os.kill(learner, signal.SIGSTOP)
        with folder.learner_epoch.open("rb") as file:
            if durable.try_lock(file.fileno()):
                return
        os.kill(learner, signal.SIGCONT)
        await asyncio.sleep(POLL_S)


def at_rest(damage: Callable[[RunFolder], None]) -> Disturb:
    """The run is stopped, something is damaged, and it is started again."""

    async def disturb(run: Run) -> None:
        await has_done(run, FIRST)
        await run.stop()
        damage(run.folder)
        await run.start()

    return disturb


def live(damage: Callable[[RunFolder], None]) -> Disturb:
    """Something is damaged while the run goes on."""

    async def disturb(run: Run) -> None:
        await has_done(run, FIRST)
        damage(run.folder)

    return disturb


def live_with_joiners(damage: Callable[[RunFolder], None]) -> Disturb:
    """Something is damaged, and all generators have to join anew, with nothing in their hands."""

    async def disturb(run: Run) -> None:
        await has_done(run, FIRST)
        damage(run.folder)
        for part in ("generator-0", "generator-1"):
            pid = run.pid_of(part)
            assert pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(run.folder.mirror_of(part), ignore_errors=True)

    return disturb


async def full_disk(run: Run) -> None:
    """The disk is full for a while."""
    await has_done(run, FIRST)
    filler = run.folder.path.parent / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    await asyncio.sleep(LONGER_THAN_A_LEASE_S)
    filler.unlink()


async def forged_rollouts(run: Run) -> None:
    """Answers that nobody asked for like that, faster than the generators' own."""
    await has_done(run, FIRST)
    with client_of(run) as (client, keys):
        for _ in range(40):
            for _, fields in client.xrange(keys.tasks, count=4):  # type: ignore[union-attr]
                with contextlib.suppress(SeptError):
                    for forged in forgeries(fields):
                        client.xadd(keys.rollouts, encode_rollout(forged))  # type: ignore[arg-type]
            client.xadd(keys.rollouts, {b"meta": os.urandom(40), b"prompt": b"x", b"response": b""})
            await asyncio.sleep(0.05)


def forgeries(fields: Any) -> Iterator[Rollout]:
    """Wrong answers to one task: token ids, length, temperature, digest."""
    task = decode_task(fields)
    honest: dict[str, Any] = {
        "task_id": task.task_id,
        "sample": 0,
        "round": task.round,
        "position": task.position,
        "prompt_tokens": task.prompt_tokens,
        "response_tokens": [1] * task.max_response_tokens,
        "finish_reason": "length",
        "temperature": task.temperature,
        "generator_id": "mallory",
        "queued_s": 0.0,
        "generate_s": 0.0,
    }
    wrong: list[dict[str, Any]] = [
        {"response_tokens": [2**31 - 1] * task.max_response_tokens},
        {"response_tokens": [1] * (task.max_response_tokens + 1)},
        {"temperature": task.temperature + 1},
        {},
    ]
    for changes in wrong:
        tokens: list[int] = changes.get("response_tokens", honest["response_tokens"])
        span = VersionSpan(weight_version=task.round, start=0, end=len(tokens), weight_digest="0" * 64)
        yield Rollout(**(honest | changes | {"spans": (span,)}))


async def poisoned_redis(run: Run) -> None:
    """Keys of other types and entries after which none can be added; the learner is killed, so that it meets them."""
    await has_done(run, FIRST)
    with client_of(run) as (client, keys):
        for name in (keys.counters, keys.dead_letters, keys.control):
            client.delete(name)
            client.set(name, "poison")
        client.hset(keys.heartbeats, "mallory", "nan {}")
        client.set(keys.generators_target, "x" * 40)
        for name in (keys.events, keys.rollouts):
            client.xadd(name, {"a": "b"}, id=b"18446744073709551615-18446744073709551615")
    pid = run.pid_of("learner")
    assert pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def refusing_redis(refuse: str, *, then: str) -> Disturb:
    """A Redis outside the run refuses to write for a while."""

    async def disturb(run: Run) -> None:
        await has_done(run, FIRST)
        with client_of(run) as (client, _):
            server: Any = client  # untyped in redis-py
            server.execute_command(*refuse.split())
            await asyncio.sleep(LONGER_THAN_A_LEASE_S)
            server.execute_command(*then.split())

    return disturb


async def lost_terminal(run: Run) -> None:
    """The terminal of `sept run` is closed: it drains, and goes on when it is started again."""
    await run.stop()
    leader, follower = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *run.command(), stdin=follower, stdout=follower, stderr=follower, start_new_session=True
    )
    os.close(follower)
    reading = asyncio.create_task(asyncio.to_thread(drain, leader))

    async def done() -> bool:
        return process.returncode is not None or run.rounds_done() >= FIRST

    try:
        await until(done, "the first rounds")
        process.send_signal(signal.SIGHUP)
        await asyncio.wait_for(process.wait(), TERMINAL_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await reading
        os.close(leader)
    await run.start()


def drain(terminal: int) -> None:
    """Read until the other side is closed."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


@contextlib.contextmanager
def client_of(run: Run) -> Iterator[tuple[redis.Redis, Keys]]:
    """The run's Redis, as whoever has its password."""
    where = endpoints.read(run.folder)
    assert where is not None
    with redis.Redis.from_url(where.redis_url, protocol=2) as client:
        yield client, Keys(run.folder.run_id)


# -- what is damaged --------------------------------------------------------------------------------------------------


def spoil(path: Path) -> None:
    """Other bytes in the middle, the size as before."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 16] = bytes(255 - byte for byte in content[middle : middle + 16])
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Its second half is gone."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def newest_version(folder: RunFolder) -> Path:
    return max(path for path in folder.weights.iterdir() if path.name.isdigit())


def newest_checkpoint(folder: RunFolder) -> None:
    cut(folder.checkpoint_of(folder.checkpointed()[-1]).state_of(0))


def all_checkpoints(folder: RunFolder) -> None:
    for version in folder.checkpointed():
        cut(folder.checkpoint_of(version).state_of(0))


def append_only_file(folder: RunFolder) -> None:
    spoil(max((folder.redis / "appendonlydir").glob("*.incr.aof")))


def mirror(folder: RunFolder) -> None:
    for path in folder.mirrors.rglob("*"):
        if path.is_file() and path.stat().st_size:
            spoil(path)


def damaged(*names: str, by: Callable[[Path], None] = spoil) -> Callable[[RunFolder], None]:
    """Damages files by their names in the run's folder."""

    def damage(folder: RunFolder) -> None:
        for name in names:
            by(folder.path / name)

    return damage


KINDS = (
    *(
        Kind(f"stopped-{part}", stopped(part))
        for part in ("learner", "generator-0", "services", "redis", "supervisor")
    ),
    Kind("second-learner", second_learner),
    Kind("metrics-at-rest", at_rest(damaged("metrics.jsonl"))),
    Kind("rollouts-at-rest", at_rest(damaged("rollouts/round-000001.jsonl", by=cut))),
    Kind("checkpoint-at-rest", at_rest(newest_checkpoint)),
    Kind("all-checkpoints-at-rest", at_rest(all_checkpoints), refused="checkpoints in"),
    Kind("version-0-at-rest", at_rest(damaged("weights/00000000/model.safetensors"))),
    Kind("model-file-at-rest", at_rest(damaged("weights/00000000/config.json"))),
    Kind("delta-at-rest", at_rest(damaged("weights/00000001/delta.bin"))),
    Kind("manifest-at-rest", at_rest(damaged("weights/00000001/manifest.json", by=cut))),
    Kind("identity-at-rest", at_rest(damaged("run.json", by=cut))),
    Kind("settings-at-rest", at_rest(damaged("config.toml", by=cut))),
    Kind("epoch-at-rest", at_rest(damaged("learner.epoch"))),
    Kind("append-only-file-at-rest", at_rest(append_only_file)),
    Kind("mirror-at-rest", at_rest(mirror)),
    Kind("version-0-live", live_with_joiners(damaged("weights/00000000/model.safetensors"))),
    Kind("newest-version-live", live_with_joiners(lambda folder: spoil(newest_version(folder) / "delta.bin"))),
    Kind("newest-manifest-live", live(lambda folder: cut(newest_version(folder) / "manifest.json"))),
    Kind("metrics-live", live(damaged("metrics.jsonl"))),
    Kind("checkpoint-live", live(newest_checkpoint)),
    Kind("full-disk", full_disk),
    Kind("forged-rollouts", forged_rollouts),
    Kind("poisoned-redis", poisoned_redis),
    Kind("redis-read-only", refusing_redis("REPLICAOF 127.0.0.1 1", then="REPLICAOF NO ONE")),
    Kind("redis-out-of-memory", refusing_redis("CONFIG SET maxmemory 1", then="CONFIG SET maxmemory 0")),
    Kind("lost-terminal", lost_terminal),
)  # fmt: skip

OUTSIDE = ("redis-read-only", "redis-out-of-memory")
"""Kinds whose Redis is none of the run's own."""


# -- what became of it ------------------------------------------------------------------------------------------------


async def inflict(kind: Kind, folder: Path, peace: dict[int, str]) -> dict[str, Any]:
    """The kind's line."""
    began = time.monotonic()
    with surroundings(kind, folder) as (run_folder, more):
        values = chaos_settings(folder, engine="scripted", rounds=ROUNDS)
        values |= {"deadlines.startup_s": 60, "checkpoint.every_rounds": 2} | more
        run = Run(run_folder, values)
        died = ""
        try:
            await run.whole(lambda: kind.disturb(run))
        except SystemExit as error:
            died = str(error)
        line: dict[str, Any] = {"kind": kind.name, "tries": 1}
        if kind.refused:
            line |= {"refused": bool(died), "survived": bool(died) and kind.refused in died}
        elif died:
            line |= {"survived": False, "last_words": died[-400:]}
        else:
            line |= {"survived": True} | found_in(run.folder, peace)
    return line | {"seconds": round(time.monotonic() - began, 1)}


def found_in(folder: RunFolder, peace: dict[int, str]) -> dict[str, Any]:
    """What a finished run's folder says, by the optimizer's own count and by the weights."""
    newest = folder.checkpoint_of(folder.checkpointed()[-1])
    with safe_open(newest.state_of(0), framework="pt") as state:
        surplus = int(state.get_tensor("steps")) - ROUNDS * STEPS_PER_ROUND
    lost = Records(folder).lost(ROUNDS)
    store = WeightReader(folder.weights, folder.run_id)
    digests = dict(readable_digests(store))
    recorded = [record for round_ in range(ROUNDS) if round_ not in lost.answers for record in read(folder, round_)]
    identities = {(record["round"], record["position"], record["sample"]) for record in recorded}
    whole = (ROUNDS - len(lost.answers)) * PROMPTS_PER_ROUND * SAMPLES
    return {
        "lost": max(0, -surplus) + whole - len(identities),
        "trained_twice": max(0, surplus) + len(recorded) - len(identities),
        "identical": digests.get(ROUNDS) == peace[ROUNDS] and digests.items() <= peace.items(),
        "records_lost": len({*lost.metrics, *lost.answers}),
    }


def readable_digests(store: WeightReader) -> Iterator[tuple[int, str]]:
    """What each version's manifest says; one that was damaged, and that nobody asked for since, says nothing."""
    for version in store.versions():
        with contextlib.suppress(SeptError):
            yield version, store.manifest(version).digest


def read(folder: RunFolder, round_: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.rollouts_of(round_).read_bytes().splitlines()]


@contextlib.contextmanager
def surroundings(kind: Kind, folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder of the kind's run, and settings for what is around it."""
    here = folder / kind.name
    here.mkdir()
    with contextlib.ExitStack() as stack:
        if kind.disturb is full_disk:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "sept", str(here)], check=True)
            stack.callback(subprocess.run, ["umount", "-l", str(here)], check=True)
        more: dict[str, Any] = {}
        if kind.name in OUTSIDE:
            server = EmbeddedRedis(here / "redis", free_port(), secrets.token_urlsafe(24))
            process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            more = {"redis.url": server.url}
        yield here / "run", more


async def undisturbed(folder: Path) -> dict[int, str]:
    """Writes the inputs of all runs into the folder; version -> digest of the weights of a run in peace."""
    await asyncio.to_thread(write_inputs, folder, seed=0, prompts=5 * PROMPTS_PER_ROUND)
    values = chaos_settings(folder, engine="scripted", rounds=ROUNDS)
    run = await Run(folder / "undisturbed", values).whole()
    store = WeightReader(run.weights, run.run_id)
    return {version: store.manifest(version).digest for version in store.versions()}


async def inflict_all(folder: Path, kinds: Sequence[Kind]) -> AsyncIterator[dict[str, Any]]:
    """A line a kind, as soon as it is known."""
    peace = await undisturbed(folder)
    for kind in kinds:
        yield await inflict(kind, folder, peace)


def passed(line: dict[str, Any]) -> bool:
    """It survived as it should, whole and the same."""
    return (
        bool(line["survived"])
        and not line.get("lost")
        and not line.get("trained_twice")
        and line.get("identical", True)
    )
