"""A generator's part, played by hand: leases tasks from the real queue and answers them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from blake3 import blake3

from services.contracts import Rollout, Task, VersionSpan
from services.streams.connection import Keys, connect_async
from services.streams.events import AsyncEventLog
from services.streams.tasks import Lease, TaskLeaser
from services.streams.wire import encode_task

T = TypeVar("T")


def rollout_of(
    task: Task, sample: int = 0, *, version: int | None = None, digest: str | None = None, vocabulary: int = 60
) -> Rollout:
    """An answer that depends on task and sample alone, sampled by the version of the task's round or limit.

    It ends with the task's first stop token, or at the task's limit where there is none.
    """
    stops = task.stop_token_ids
    drawn = blake3(f"{task.task_id} {sample}".encode()).digest(length=min(64, task.max_response_tokens))
    plain = [token for token in range(vocabulary) if token not in stops]
    length = 1 + drawn[0] % min(8, len(drawn)) if stops else len(drawn)
    response = [plain[byte % len(plain)] for byte in drawn[:length]]
    if stops:
        response[-1] = stops[0]
    if version is None:
        version = task.round if task.max_weight_version is None else task.max_weight_version
    return Rollout(
        task_id=task.task_id,
        sample=sample,
        round=task.round,
        position=task.position,
        prompt_tokens=task.prompt_tokens,
        response_tokens=response,
        finish_reason="stop" if stops else "length",
        temperature=task.temperature,
        top_p=task.top_p,
        top_k=task.top_k,
        min_p=task.min_p,
        spans=(VersionSpan(weight_version=version, start=0, end=len(response), weight_digest=digest),),
        generator_id="by-hand",
        queued_s=0.0,
        generate_s=0.1,
        purpose=task.purpose,
    )


def answers(task: Task, digests: Mapping[int, str] | None = None) -> list[Rollout]:
    """One a sample, by the version of the task's round or limit; with `digests`, by the newest of these up to it."""
    version = task.round if task.max_weight_version is None else task.max_weight_version
    if digests:
        version = max((held for held in digests if held <= version), default=version)
    digest = (digests or {}).get(version)
    return [rollout_of(task, sample, version=version, digest=digest) for sample in range(task.samples)]


def with_leaser(redis_url: str, keys: Keys, use: Callable[[TaskLeaser], Awaitable[T]], *, by: str = "by-hand") -> T:
    """What `use` makes of a leaser of its own."""

    async def run() -> T:
        client = await connect_async(redis_url)
        try:
            return await use(TaskLeaser(client, keys, "by-hand", 30))
        finally:
            await client.aclose()

    return asyncio.run(run())


def answer(
    redis_url: str,
    keys: Keys,
    *,
    block_s: float = 5.0,
    count: int = 1000,
    order: Callable[[list[Lease]], Sequence[Lease]] = list,
    respond: Callable[[Task], list[Rollout]] = answers,
) -> list[Task]:
    """Lease once, complete in `order`; returns the tasks completed."""

    async def use(leaser: TaskLeaser) -> list[Task]:
        leases = order(await leaser.lease(count, block_s))
        for lease in leases:
            assert await leaser.complete(lease, respond(lease.task))
        return [lease.task for lease in leases]

    return with_leaser(redis_url, keys, use)


def reject(redis_url: str, keys: Keys, reason: str) -> None:
    """Lease one task and give it up, as a generator does with one that it cannot run."""

    async def use(leaser: TaskLeaser) -> None:
        (lease,) = await leaser.lease(1, 5.0)
        await leaser.reject(lease.entry_id, encode_task(lease.task), reason)

    with_leaser(redis_url, keys, use)


class Answering:
    """Answers every task of a run from a thread, until the block ends, by the versions that its events announce.

    with Answering(redis_url, keys): ...
    """

    def __init__(
        self,
        redis_url: str,
        keys: Keys,
        *,
        may_answer: Callable[[Task], bool] = lambda task: True,
        by: str = "by-hand",
    ) -> None:
        self._by = by
        self._redis_url = redis_url
        self._keys = keys
        self._may_answer = may_answer
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._answer())

    async def _answer(self) -> None:
        client = await connect_async(self._redis_url)
        try:
            leaser, events = TaskLeaser(client, self._keys, self._by, 30), AsyncEventLog(client, self._keys)
            digests: dict[int, str] = {}
            seen = "0"
            while not self._over.is_set():
                leases = await leaser.lease(1000, 0.05)
                for event in await events.read(seen, 0, count=10_000):
                    seen = event.id
                    if event.kind == "published":
                        digests[event.fields["weight_version"]] = event.fields["digest"]
                for lease in leases:
                    if self._may_answer(lease.task):
                        await leaser.complete(lease, answers(lease.task, digests))
        finally:
            await client.aclose()
