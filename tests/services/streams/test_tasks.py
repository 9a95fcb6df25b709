"""The task queue: leases, their expiry, completion exactly once, and what happens to rubbish and to an empty Redis."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import redis
import redis.asyncio

from services.errors import ContractError, UnavailableError
from services.streams import scripts
from services.streams.connection import Keys
from services.streams.dead_letters import MAX_FIELDS, read_dead_letters, read_dead_letters_async
from services.streams.rollouts import RolloutReader
from services.streams.tasks import (
    COMPLETE_BYTES,
    ISSUE_CHUNK,
    MAX_DELIVERIES,
    QueueGauge,
    TaskIssuer,
    TaskLeaser,
    _age_s,
)
from services.streams.wire import encode_task
from tests.support.stream_builders import expire, make_rollouts, make_task

LEASE_S = 3600.0
TASKS = [make_task(index) for index in range(6)]
IDS = [task.task_id for task in TASKS]


@pytest.fixture
def issuer(client: redis.Redis, keys: Keys) -> TaskIssuer:
    return TaskIssuer(client, keys)


@pytest.fixture
def reader(client: redis.Redis, keys: Keys) -> RolloutReader:
    return RolloutReader(client, keys)


@pytest.fixture
def alice(async_client: redis.asyncio.Redis, keys: Keys) -> TaskLeaser:
    return TaskLeaser(async_client, keys, "alice", LEASE_S)


@pytest.fixture
def bob(async_client: redis.asyncio.Redis, keys: Keys) -> TaskLeaser:
    return TaskLeaser(async_client, keys, "bob", LEASE_S)


@pytest.fixture
def gauge(async_client: redis.asyncio.Redis, keys: Keys) -> QueueGauge:
    return QueueGauge(async_client, keys)


def scripts_run(client: redis.Redis) -> int:
    """How many scripts Redis has run."""
    statistics: Any = client.info("commandstats")
    return int(statistics.get("cmdstat_evalsha", {"calls": 0})["calls"])


async def test_tasks_are_leased_in_the_order_of_their_issue(
    issuer: TaskIssuer, alice: TaskLeaser, bob: TaskLeaser
) -> None:
    assert issuer.issue(TASKS) == 6
    first, second = await alice.lease(4, 0), await bob.lease(4, 0)
    assert [lease.task for lease in first + second] == TASKS
    assert {lease.deliveries for lease in first + second} == {1}
    assert all(0 <= lease.queued_s < 60 for lease in first + second)
    assert await bob.lease(4, 0) == []
    assert await bob.lease(0, 60) == []


async def test_an_open_task_is_not_issued_twice(issuer: TaskIssuer, alice: TaskLeaser) -> None:
    assert issuer.issue(TASKS[:3]) == 3
    [lease] = await alice.lease(1, 0)
    assert issuer.issue(TASKS) == 3
    assert issuer.unknown([*TASKS, make_task(77)]) == [make_task(77).task_id]
    await alice.complete(lease, make_rollouts(lease.task))
    assert issuer.unknown(TASKS) == [lease.task.task_id]
    assert issuer.unknown([]) == []


async def test_more_tasks_than_one_script_call_takes_keep_their_order(issuer: TaskIssuer, alice: TaskLeaser) -> None:
    tasks = [make_task(index) for index in range(ISSUE_CHUNK + 5)]
    assert issuer.issue(tasks) == len(tasks)
    assert [lease.task.position for lease in await alice.lease(len(tasks), 0)] == list(range(len(tasks)))


async def test_completion_exchanges_the_task_for_all_its_rollouts(
    issuer: TaskIssuer, reader: RolloutReader, alice: TaskLeaser, gauge: QueueGauge
) -> None:
    task = make_task(0, samples=3)
    issuer.issue([task])
    [lease] = await alice.lease(1, 0)
    assert await alice.complete(lease, make_rollouts(task))
    assert [rollout for _, rollout in reader.read(0)] == make_rollouts(task)
    depth = await gauge.read()
    assert (depth.tasks_queued, depth.tasks_leased, depth.rollouts_queued, depth.oldest_task_s) == (0, 0, 3, 0.0)


async def test_tasks_completed_at_the_same_time_share_a_request_and_each_has_its_own_answer(
    client: redis.Redis, issuer: TaskIssuer, reader: RolloutReader, alice: TaskLeaser, bob: TaskLeaser
) -> None:
    tasks = [make_task(index, samples=1 + index % 2) for index in range(20)]
    issuer.issue(tasks)
    leases = await alice.lease(20, 0)
    await bob.complete(leases[3], make_rollouts(tasks[3]))
    issuer.close([tasks[7].task_id])
    before = scripts_run(client)
    first = await asyncio.gather(*(alice.complete(lease, make_rollouts(lease.task)) for lease in leases))
    assert scripts_run(client) - before == 1
    assert [lease.task.position for lease, was_first in zip(leases, first, strict=True) if not was_first] == [3, 7]
    expected = [
        rollout.rollout_id for at in [3, *range(3), *range(4, 7), *range(8, 20)] for rollout in make_rollouts(tasks[at])
    ]
    assert [rollout.rollout_id for _, rollout in reader.read(0)] == expected


async def test_completions_beyond_the_size_of_a_request_go_into_the_next(
    client: redis.Redis, issuer: TaskIssuer, alice: TaskLeaser
) -> None:
    half = {"prompt_tokens": [1] * (COMPLETE_BYTES // 16), "samples": 2}  # of a request, a quarter for each sample
    tasks = [make_task(index, **half) for index in range(6)]
    issuer.issue(tasks)
    first, *leases = await alice.lease(6, 0)
    await alice.complete(first, make_rollouts(first.task))  # loads the script
    before = scripts_run(client)
    assert all(await asyncio.gather(*(alice.complete(lease, make_rollouts(lease.task)) for lease in leases)))
    assert scripts_run(client) - before == 3


async def test_a_cancelled_completion_is_not_sent_and_holds_up_no_other(
    issuer: TaskIssuer, reader: RolloutReader, alice: TaskLeaser
) -> None:
    issuer.issue(TASKS)
    leases = await alice.lease(len(TASKS), 0)
    calls = [asyncio.ensure_future(alice.complete(lease, make_rollouts(lease.task))) for lease in leases]
    await asyncio.sleep(0)  # each has been called and none was sent yet
    for call in calls[:2]:  # the first has the request to send, the second waits for it
        call.cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in done] == [True, True, *([False] * 4)]
    assert done[2:] == [True] * 4
    assert [rollout.task_id for _, rollout in reader.read(0)] == IDS[2:]
    assert await alice.renew(leases) == {lease.entry_id for lease in leases[:2]}


async def test_a_completion_that_is_cancelled_during_its_request_fails_no_other(
    issuer: TaskIssuer, reader: RolloutReader, alice: TaskLeaser, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.issue(TASKS[:3])
    calls = [
        asyncio.ensure_future(alice.complete(lease, make_rollouts(lease.task))) for lease in await alice.lease(3, 0)
    ]
    complete: Any = alice._complete

    async def with_a_change_of_mind(keys: Any, args: Any) -> Any:
        answers = await complete(keys, args)
        calls[1].cancel()
        await asyncio.wait(calls[1:2])
        return answers

    monkeypatch.setattr(alice, "_complete", with_a_change_of_mind)
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert (done[0], type(done[1]), done[2]) == (True, asyncio.CancelledError, True)
    assert [rollout.task_id for _, rollout in reader.read(0)] == IDS[:3]


async def test_answers_to_another_task_or_too_few_are_refused(issuer: TaskIssuer, alice: TaskLeaser) -> None:
    issuer.issue([make_task(0, samples=2)])
    [lease] = await alice.lease(1, 0)
    right = make_rollouts(lease.task)
    for wrong in ([], right[:1], [right[0], right[0]], make_rollouts(make_task(1, samples=2))):
        with pytest.raises(ContractError, match=r"samples 0 \.\. 1"):
            await alice.complete(lease, wrong)
    assert await alice.renew([lease]) == {lease.entry_id}


async def test_an_expired_lease_goes_to_another_before_new_tasks(
    issuer: TaskIssuer,
    alice: TaskLeaser,
    bob: TaskLeaser,
    gauge: QueueGauge,
    async_client: redis.asyncio.Redis,
    keys: Keys,
) -> None:
    issuer.issue(TASKS[:3])
    first, second = await alice.lease(2, 0)
    await expire(async_client, keys, second.entry_id)
    taken = await bob.lease(2, 0)
    assert [(lease.task.position, lease.deliveries) for lease in taken] == [(1, 2), (2, 1)]
    assert await alice.renew([first, second]) == {first.entry_id}
    assert await bob.renew(taken) == {lease.entry_id for lease in taken}
    assert (await gauge.read()).reissued == 1


async def test_a_short_lease_expires_by_itself_while_another_waits(
    issuer: TaskIssuer, alice: TaskLeaser, async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    issuer.issue(TASKS[:1])
    [lost] = await alice.lease(1, 0)
    hasty = TaskLeaser(async_client, keys, "hasty", lease_s=0.05)
    [taken] = await hasty.lease(1, block_s=10)
    assert (taken.entry_id, taken.deliveries) == (lost.entry_id, 2)


async def test_a_renewed_lease_does_not_expire(
    issuer: TaskIssuer, alice: TaskLeaser, bob: TaskLeaser, async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    issuer.issue(TASKS[:1])
    [lease] = await alice.lease(1, 0)
    await expire(async_client, keys, lease.entry_id)
    assert await alice.renew([lease]) == {lease.entry_id}
    assert await bob.lease(1, 0) == []


async def test_a_renewal_is_no_delivery(
    issuer: TaskIssuer, alice: TaskLeaser, bob: TaskLeaser, async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    """Else a long answer would become a dead letter."""
    issuer.issue(TASKS[:1])
    [lease] = await alice.lease(1, 0)
    for _ in range(MAX_DELIVERIES + 1):
        assert await alice.renew([lease]) == {lease.entry_id}
    await expire(async_client, keys, lease.entry_id)
    assert [again.deliveries for again in await bob.lease(1, 0)] == [2]


async def test_of_two_completions_the_first_counts_even_after_expiry(
    issuer: TaskIssuer,
    reader: RolloutReader,
    alice: TaskLeaser,
    bob: TaskLeaser,
    async_client: redis.asyncio.Redis,
    keys: Keys,
) -> None:
    issuer.issue(TASKS[:1])
    [late] = await alice.lease(1, 0)
    await expire(async_client, keys, late.entry_id)
    [twin] = await bob.lease(1, 0)
    assert await alice.complete(late, make_rollouts(late.task, "alice"))
    assert not await bob.complete(twin, make_rollouts(twin.task, "bob"))
    assert [rollout.generator_id for _, rollout in reader.read(0)] == ["alice"]
    assert await bob.renew([twin]) == set()


async def test_a_lease_is_not_handed_twice_to_the_generator_that_holds_it(
    issuer: TaskIssuer, alice: TaskLeaser, bob: TaskLeaser, async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    issuer.issue(TASKS[:1])
    [lease] = await alice.lease(1, 0)
    await expire(async_client, keys, lease.entry_id)
    assert await alice.lease(1, 0) == []
    assert await bob.lease(1, 0) == []  # asking has renewed it
    assert await alice.complete(lease, make_rollouts(lease.task))


async def test_a_generator_that_restarts_under_its_old_name_gets_its_tasks_again(
    issuer: TaskIssuer, alice: TaskLeaser, async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    issuer.issue(TASKS[:1])
    [lease] = await alice.lease(1, 0)
    await expire(async_client, keys, lease.entry_id)
    reborn = TaskLeaser(async_client, keys, "alice", LEASE_S)
    assert [again.entry_id for again in await reborn.lease(1, 0)] == [lease.entry_id]


async def test_all_expired_leases_are_found_behind_many_living_ones(
    issuer: TaskIssuer, alice: TaskLeaser, bob: TaskLeaser, async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    issuer.issue([make_task(index) for index in range(60)])
    leases = await alice.lease(60, 0)
    await expire(async_client, keys, leases[-1].entry_id)
    found = [lease for _ in range(8) for lease in await bob.lease(1, 0)]
    assert [lease.task.position for lease in found] == [59]


async def test_released_tasks_are_free_at_once_and_keep_their_delivery_count(
    issuer: TaskIssuer, alice: TaskLeaser, bob: TaskLeaser, gauge: QueueGauge
) -> None:
    issuer.issue(TASKS[:2])
    kept, given = await alice.lease(2, 0)
    await alice.release([given])
    depth = await gauge.read()
    assert (depth.tasks_queued, depth.tasks_leased) == (1, 1)
    assert await alice.renew([kept, given]) == {kept.entry_id}
    assert [(lease.task.position, lease.deliveries) for lease in await bob.lease(2, 0)] == [(1, 1)]
    await alice.release([given])  # bob's now: nothing happens
    assert await alice.lease(2, 0) == []
    assert (await gauge.read()).reissued == 0


async def test_leaving_frees_everything_and_signs_off(
    issuer: TaskIssuer, alice: TaskLeaser, bob: TaskLeaser, async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    issuer.issue(TASKS)
    await alice.lease(4, 0)
    await alice.leave()
    taken = await bob.lease(6, 0)
    assert [(lease.task, lease.deliveries) for lease in taken] == [(task, 1) for task in TASKS]
    names = [consumer["name"] for consumer in await async_client.xinfo_consumers(keys.tasks, scripts.GROUP)]
    assert b"alice" not in names


async def test_leaving_frees_more_leases_than_one_request_takes(
    issuer: TaskIssuer, alice: TaskLeaser, bob: TaskLeaser
) -> None:
    tasks = [make_task(index) for index in range(1001)]
    issuer.issue(tasks)
    assert len(await alice.lease(2000, 0)) == 1001
    await alice.leave()
    assert len(await bob.lease(2000, 0)) == 1001


async def test_a_closed_task_is_gone_and_its_late_completion_refused(
    issuer: TaskIssuer, reader: RolloutReader, alice: TaskLeaser, gauge: QueueGauge
) -> None:
    issuer.issue(TASKS[:3])
    [lease] = await alice.lease(1, 0)
    assert issuer.close([*IDS[:2], "other"]) == 2
    assert issuer.issue(TASKS[:1]) == 1
    assert not await alice.complete(lease, make_rollouts(lease.task))
    assert [again.task.position for again in await alice.lease(5, 0)] == [2, 0]
    assert reader.read(0) == []
    assert (await gauge.read()).tasks_queued == 0
    assert issuer.close([]) == 0


async def test_waiting_ends_when_a_task_is_issued(issuer: TaskIssuer, alice: TaskLeaser) -> None:
    waiting = asyncio.create_task(alice.lease(8, block_s=60))
    await asyncio.to_thread(issuer.issue, TASKS[:1])
    async with asyncio.timeout(10):
        [lease] = await waiting
    assert lease.task == TASKS[0]


async def test_who_waits_at_redis_gets_what_is_issued_then_and_no_more_than_it_asked_for(
    issuer: TaskIssuer, alice: TaskLeaser, client: redis.Redis
) -> None:
    waiting = asyncio.create_task(alice.lease(2, block_s=60))
    async with asyncio.timeout(30):
        blocked: Any = 0
        while not blocked:
            blocked = (await asyncio.to_thread(client.info, "clients"))["blocked_clients"]
        await asyncio.to_thread(issuer.issue, TASKS[:3])
        leases = await waiting
    assert [lease.task for lease in leases] == TASKS[:2]
    assert [lease.deliveries for lease in leases] == [1, 1]
    assert all(0 <= lease.queued_s < 60 for lease in leases)
    assert await alice.renew(leases) == {lease.entry_id for lease in leases}
    assert [lease.task for lease in await alice.lease(2, 0)] == TASKS[2:3]


async def test_waiting_ends_with_nothing_when_its_time_is_over(issuer: TaskIssuer, alice: TaskLeaser) -> None:
    assert await alice.lease(8, block_s=0.05) == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({b"meta": b"{", b"prompt": b""}, "not JSON"),
        ({b"noise": b"1"}, "has fields noise"),
        (encode_task(make_task(0)) | {b"prompt": b"123"}, "multiple of 4"),
        (encode_task(make_task(0)) | {b"meta": b'{"schema_version":9}'}, "schema_version"),
        ({str(index).encode(): bytes(100) for index in range(9000)}, "has fields"),
    ],
)
async def test_an_unreadable_task_becomes_a_dead_letter_and_the_rest_goes_on(
    client: redis.Redis,
    keys: Keys,
    issuer: TaskIssuer,
    alice: TaskLeaser,
    gauge: QueueGauge,
    fields: dict[bytes, bytes],
    reason: str,
) -> None:
    entry_id = client.xadd(keys.tasks, dict(fields.items()))
    issuer.issue(TASKS[:1])
    assert [lease.task for lease in await alice.lease(2, 0)] == TASKS[:1]
    [letter] = read_dead_letters(client, keys)
    assert letter.source == "tasks"
    assert letter.entry_id.encode() == entry_id
    assert reason in letter.reason
    assert letter.fields == dict(list(fields.items())[:MAX_FIELDS])
    depth = await gauge.read()
    assert (depth.tasks_leased, depth.dead_letters) == (1, 1)


async def test_a_damaged_task_is_open_for_issue_again(
    client: redis.Redis, keys: Keys, issuer: TaskIssuer, alice: TaskLeaser, async_client: redis.asyncio.Redis
) -> None:
    issuer.issue(TASKS[:2])
    [lease] = await alice.lease(1, 0)
    assert await alice.reject(lease.entry_id, encode_task(lease.task), "damaged")
    assert not await alice.reject(lease.entry_id, encode_task(lease.task), "damaged")
    assert issuer.unknown(TASKS[:2]) == IDS[:1]
    assert [letter.reason for letter in await read_dead_letters_async(async_client, keys)] == ["damaged"]
    # A forged entry that claims an open task's id must not close that task.
    client.xadd(keys.tasks, {b"meta": b'{"task_id":"%s"}' % IDS[1].encode(), b"prompt": b""})
    await alice.lease(8, 0)
    assert issuer.unknown(TASKS[:2]) == IDS[:1]


async def test_a_task_that_nobody_survives_is_given_up(
    issuer: TaskIssuer, async_client: redis.asyncio.Redis, keys: Keys, client: redis.Redis
) -> None:
    issuer.issue(TASKS[:1])
    for victim in range(MAX_DELIVERIES):
        [lease] = await TaskLeaser(async_client, keys, f"victim-{victim}", LEASE_S).lease(1, 0)
        assert lease.deliveries == victim + 1
        await expire(async_client, keys, lease.entry_id)
    assert await TaskLeaser(async_client, keys, "wary", LEASE_S).lease(1, 0) == []
    [letter] = read_dead_letters(client, keys)
    assert "delivered 6 times" in letter.reason
    assert issuer.unknown(TASKS[:1]) == IDS[:1]


async def test_redis_coming_back_empty_is_noticed_once_and_reissue_works(
    client: redis.Redis, issuer: TaskIssuer, alice: TaskLeaser, reader: RolloutReader
) -> None:
    assert issuer.alive()
    issuer.issue(TASKS)
    [lease] = await alice.lease(1, 0)
    client.flushall()
    client.script_flush()
    assert not issuer.alive()
    assert issuer.alive()
    assert not await alice.complete(lease, make_rollouts(lease.task))
    assert await alice.renew([lease]) == set()
    assert issuer.issue(TASKS) == 6
    assert [again.task for again in await alice.lease(9, 0)] == TASKS
    assert reader.read(0) == []


def test_a_loss_is_noticed_even_when_tasks_were_issued_since(client: redis.Redis, issuer: TaskIssuer) -> None:
    issuer.issue(TASKS[:3])
    client.flushall()
    issuer.issue(TASKS[3:])
    assert not issuer.alive()
    assert issuer.unknown(TASKS) == IDS[:3]


def test_a_task_whose_entry_alone_is_gone_is_open_for_issue_again(
    client: redis.Redis, keys: Keys, issuer: TaskIssuer
) -> None:
    issuer.issue(TASKS[:2])
    client.delete(keys.tasks)
    assert issuer.alive(), "nothing tells of a loss in part"
    assert issuer.unknown(TASKS[:2]) == IDS[:2]
    assert issuer.issue(TASKS[:2]) == 2


def test_a_learner_that_resumes_finds_the_queue_alive(client: redis.Redis, keys: Keys, issuer: TaskIssuer) -> None:
    issuer.issue(TASKS)
    resumed = TaskIssuer(client, keys)
    assert resumed.alive()
    assert resumed.issue(TASKS) == 0


async def test_a_missing_group_is_made_again(
    client: redis.Redis, keys: Keys, issuer: TaskIssuer, alice: TaskLeaser, gauge: QueueGauge
) -> None:
    issuer.issue(TASKS[:2])
    client.xgroup_destroy(keys.tasks, scripts.GROUP)
    assert (await gauge.read()).tasks_queued == 2
    assert await alice.renew([]) == set()
    await alice.leave()
    assert [lease.task for lease in await alice.lease(2, block_s=10)] == TASKS[:2]


async def test_a_generator_that_comes_first_waits_for_the_learner(
    alice: TaskLeaser, client: redis.Redis, keys: Keys
) -> None:
    waiting = asyncio.create_task(alice.lease(8, block_s=60))
    issuer = await asyncio.to_thread(TaskIssuer, client, keys)
    await asyncio.to_thread(issuer.issue, TASKS)
    async with asyncio.timeout(10):
        assert [lease.task for lease in await waiting] == TASKS


async def test_a_generator_that_waits_survives_an_empty_redis(
    issuer: TaskIssuer, alice: TaskLeaser, client: redis.Redis
) -> None:
    waiting = asyncio.create_task(alice.lease(8, block_s=60))
    await asyncio.to_thread(client.flushall)
    assert not await asyncio.to_thread(issuer.alive)
    await asyncio.to_thread(issuer.issue, TASKS)
    async with asyncio.timeout(10):
        assert [lease.task for lease in await waiting] == TASKS


async def test_an_empty_redis_has_an_empty_gauge(gauge: QueueGauge, issuer: TaskIssuer) -> None:
    depth = await gauge.read()
    assert (depth.tasks_queued, depth.tasks_leased, depth.rollouts_queued, depth.dead_letters) == (0, 0, 0, 0)
    issuer.issue(TASKS)
    assert 0 <= (await gauge.read()).oldest_task_s < 60


@pytest.mark.parametrize("how", ["acknowledged", "read without a lease"])
async def test_a_task_that_the_queue_has_passed_over_is_open_for_issue_again(
    client: redis.Redis, keys: Keys, issuer: TaskIssuer, alice: TaskLeaser, how: str
) -> None:
    issuer.issue(TASKS)
    if how == "acknowledged":
        (lease,) = await alice.lease(1, 0)
        client.xack(keys.tasks, scripts.GROUP, lease.entry_id)
    else:
        client.xreadgroup(scripts.GROUP, "mallory", {keys.tasks: ">"}, count=1, noack=True)
    leased = await alice.lease(2, 0)
    assert issuer.unknown(TASKS) == IDS[:1], "what is leased or waits is open"
    assert issuer.issue(TASKS) == 1
    assert [lease.task.task_id for lease in leased + await alice.lease(9, 0)] == [*IDS[1:], IDS[0]]


async def test_a_completion_that_the_server_does_not_take_leaves_the_task_leased(
    client: redis.Redis, keys: Keys, issuer: TaskIssuer, reader: RolloutReader, alice: TaskLeaser
) -> None:
    issuer.issue(TASKS[:1])
    (lease,) = await alice.lease(1, 0)
    client.xadd(keys.rollouts, {"a": "b"}, id=f"{2**64 - 1}-{2**64 - 1}")
    with pytest.raises(redis.ResponseError):
        await alice.complete(lease, make_rollouts(lease.task))
    assert reader.read(0) == [], "the learner removes what no server has drawn"
    assert await alice.complete(lease, make_rollouts(lease.task))
    assert [rollout.task_id for _, rollout in reader.read(0)] == IDS[:1]


def test_a_dead_letter_that_the_server_does_not_take_stops_nobody(
    client: redis.Redis, keys: Keys, reader: RolloutReader
) -> None:
    client.xadd(keys.dead_letters, {"a": "b"}, id=f"{2**64 - 1}-{2**64 - 1}")
    client.xadd(keys.rollouts, {"a": "b"})
    assert reader.read(0) == []
    assert client.xlen(keys.rollouts) == 0


async def test_a_refused_generator_neither_leases_nor_completes_and_another_does(
    client: redis.Redis, keys: Keys, issuer: TaskIssuer, alice: TaskLeaser, bob: TaskLeaser
) -> None:
    issuer.issue(TASKS)
    [lease] = await alice.lease(1, 0)
    issuer.refuse("alice", 60.4, "its prompts are others" + "." * 600)
    entry: Any = client.hget(keys.refused, "alice")
    until, _, reason = entry.partition(b" ")
    assert 50 < int(until) - time.time() < 70
    assert reason.decode() == ("its prompts are others" + "." * 600)[:500]
    for _ in range(2):
        for call in (alice.lease(1, 0), alice.complete(lease, make_rollouts(lease.task))):
            with pytest.raises(
                UnavailableError, match=r"takes no answers of alice for a while: its prompts"
            ) as refused:
                await call
            assert "REFUSED" not in refused.value.message
    assert await alice.renew([lease]) == {lease.entry_id}, "its lease expires like any other"
    assert [other.task for other in await bob.lease(9, 0)] == TASKS[1:]
    client.hset(keys.refused, "alice", f"{int(time.time()) - 1} its time is over")
    assert await alice.complete(lease, make_rollouts(lease.task))


def test_unknown_tasks_are_found_among_more_than_one_script_call_takes(issuer: TaskIssuer) -> None:
    tasks = [make_task(index) for index in range(2 * ISSUE_CHUNK + 5)]
    issuer.issue(tasks[1:-1])
    assert issuer.unknown(tasks) == [tasks[0].task_id, tasks[-1].task_id]


async def test_a_lease_that_was_lost_with_its_group_is_taken_again(
    client: redis.Redis, keys: Keys, issuer: TaskIssuer, alice: TaskLeaser
) -> None:
    issuer.issue(TASKS[:2])
    leases = await alice.lease(2, 0)
    client.xgroup_destroy(keys.tasks, scripts.GROUP)
    assert await alice.renew(leases) == set()
    again = await alice.lease(2, block_s=10)
    assert [lease.task for lease in again] == TASKS[:2]
    assert await alice.renew(again) == {lease.entry_id for lease in again}


async def test_renewing_one_lease_forgets_no_other(
    issuer: TaskIssuer, alice: TaskLeaser, async_client: redis.asyncio.Redis, keys: Keys
) -> None:
    issuer.issue(TASKS[:2])
    first, second = await alice.lease(2, 0)
    assert await alice.renew([first]) == {first.entry_id}
    await expire(async_client, keys, second.entry_id)
    assert await alice.lease(1, 0) == [], "it is at work on the second, too"


async def test_a_queue_is_opened_once_whoever_comes_first(
    client: redis.Redis, keys: Keys, alice: TaskLeaser, bob: TaskLeaser
) -> None:
    assert await alice.lease(1, 0) == []
    assert [group["name"] for group in client.xinfo_groups(keys.tasks)] == [scripts.GROUP.encode()]
    await bob._open_group()  # as when both came at once
    assert await bob.lease(1, 0) == []


async def test_what_else_redis_refuses_is_not_passed_over(
    client: redis.Redis, keys: Keys, issuer: TaskIssuer, alice: TaskLeaser
) -> None:
    issuer.issue(TASKS[:1])
    [lease] = await alice.lease(1, 0)
    client.set(keys.tasks, b"of another kind")
    calls = (
        alice.lease(1, 0),
        alice.renew([lease]),
        alice.release([lease]),
        alice.leave(),
        alice.complete(lease, make_rollouts(lease.task)),
        alice._open_group(),
    )
    for call in calls:
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            await call


async def test_the_gauge_knows_how_long_the_oldest_task_has_waited(
    client: redis.Redis, keys: Keys, issuer: TaskIssuer, gauge: QueueGauge
) -> None:
    seconds, _ = client.time()
    client.xadd(keys.tasks, dict(encode_task(TASKS[0]).items()), id=f"{(seconds - 100) * 1000}-0")
    issuer.issue(TASKS[1:])
    assert 99 <= (await gauge.read()).oldest_task_s < 160


@pytest.mark.parametrize(("now", "age_s"), [((12, 500_000), 2.0), ((10, 500_000), 0.0), ((10, 250_000), 0.0)])
def test_an_age_is_that_by_the_servers_clock_and_never_negative(now: tuple[int, int], age_s: float) -> None:
    assert _age_s(b"10500-3", now) == age_s
