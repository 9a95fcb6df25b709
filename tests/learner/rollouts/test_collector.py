"""Whatever happens to the queue, the learner gets every rollout of its round once and in order, or a clear error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytest
import redis

from learner.rollouts.collector import MAX_REISSUES, Collector, Interrupted
from services.contracts import Purpose, Rollout, Task
from services.errors import ContractError, DeadlineError, UnavailableError
from services.streams.connection import Keys, connect
from services.streams.dead_letters import read_dead_letters
from services.streams.rollouts import RolloutReader
from services.streams.tasks import Lease, TaskIssuer, TaskLeaser
from services.streams.wire import encode_rollout
from tests.support.answering import Answering, answer, answers, reject, rollout_of, with_leaser
from tests.support.collected import expected, ids, tasks_of

KEYS = Keys("collector")
PATIENCE_S = 20.0

Open = Callable[..., Collector]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def collector(client: redis.Redis) -> Iterator[Open]:
    """Opens collectors over the same queue, one after the other as a learner that starts anew."""
    opened: list[Collector] = []

    def open_one(*, first_round: int = 0, recheck_after_s: float = 60.0, **more: Any) -> Collector:
        for before in opened:
            before.stop()
        made = Collector(
            TaskIssuer(client, KEYS),
            RolloutReader(client, KEYS),
            first_round=first_round,
            reason_of=lambda task_id: f"{task_id} is cursed",
            look_every_s=0.05,
            recheck_after_s=recheck_after_s,
            **more,
        )
        opened.append(made)
        made.start()
        return made

    yield open_one
    for made in opened:
        made.stop()


def send(client: redis.Redis, rollout: Rollout) -> None:
    client.xadd(KEYS.rollouts, encode_rollout(rollout))  # type: ignore[arg-type]


def test_rollouts_come_in_task_order_whatever_order_they_arrive_in(collector: Open, redis_url: str) -> None:
    collecting = collector()
    collecting.expect(tasks_of(0))
    collecting.expect(tasks_of(1))
    answer(redis_url, KEYS, order=lambda leases: leases[::-1])
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0)
    assert ids(collecting.in_order(1, PATIENCE_S)) == expected(1)


def test_rollouts_gather_while_nobody_waits_for_them(
    collector: Open, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a pause between reads that outlasts the test: only a wait makes the next read come."""
    reads = 0
    read = RolloutReader.read

    def counted(reader: RolloutReader, block_s: float, count: int = 256) -> list[tuple[bytes, Rollout]]:
        nonlocal reads
        reads += 1
        return read(reader, block_s, count)

    monkeypatch.setattr("learner.rollouts.collector.GATHER_S", 3600.0)
    monkeypatch.setattr(RolloutReader, "read", counted)
    collecting = collector()
    for round_ in range(2):
        collecting.expect(tasks_of(round_))
        before = reads
        answer(redis_url, KEYS)
        assert reads <= before + 1, "beside the one that was under way"
        assert ids(collecting.in_order(round_, PATIENCE_S)) == expected(round_)


def test_it_is_known_when_a_rollout_was_handed_in(collector: Open, redis_url: str) -> None:
    collecting = collector()
    collecting.expect(tasks_of(0))
    began = time.time()
    answer(redis_url, KEYS)
    ended = time.time()
    for rollout in collecting.in_order(0, PATIENCE_S):
        assert began - 0.001 <= collecting.completed_at(rollout) <= ended, "Redis counts in milliseconds"


def test_rollouts_leave_redis_only_when_released(collector: Open, client: redis.Redis, redis_url: str) -> None:
    collecting = collector()
    collecting.expect(tasks_of(0))
    collecting.expect(tasks_of(1))
    answer(redis_url, KEYS)
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0)
    assert ids(collecting.in_order(1, PATIENCE_S)) == expected(1)
    assert client.xlen(KEYS.rollouts) == 16
    collecting.release(before_round=1)
    assert client.xlen(KEYS.rollouts) == 8
    assert collecting.held == 8


def test_a_learner_that_starts_anew_takes_up_what_waits_and_issues_the_rest(collector: Open, redis_url: str) -> None:
    collector().expect(tasks_of(0))
    answer(redis_url, KEYS, count=2)
    again = collector()
    assert not again.has(tasks_of(0))
    again.expect(tasks_of(0))
    assert len(answer(redis_url, KEYS)) == 2, "tasks that are open are not issued twice"
    assert ids(again.in_order(0, PATIENCE_S)) == expected(0)
    assert again.has(tasks_of(0))
    assert collector(first_round=1).held == 0, "a checkpoint contains round 0"


def test_a_task_is_here_when_all_its_samples_are(collector: Open, client: redis.Redis) -> None:
    collecting = collector()
    tasks = tasks_of(0, count=2)
    collecting.expect(tasks)
    for task, sample in [(tasks[0], 0), (tasks[0], 1), (tasks[1], 0)]:
        send(client, rollout_of(task, sample))
    in_order = collecting.in_order(0, PATIENCE_S)
    assert [next(in_order).rollout_id for _ in range(3)] == expected(0, count=2)[:3]
    assert collecting.has(tasks[:1])
    assert not collecting.has(tasks), "one of its samples is missing"
    send(client, rollout_of(tasks[1], 1))
    assert len(ids(in_order)) == 1
    assert collecting.has(tasks)


def test_of_twins_the_first_is_trained_and_its_time_counts(collector: Open, client: redis.Redis) -> None:
    collecting = collector()
    (task,) = tasks_of(0, count=1)
    first, second = (rollout_of(task, 0).model_copy(update={"generator_id": name}) for name in ("first", "second"))
    collecting.expect([task])
    for rollout in (first, second, rollout_of(task, 1)):
        send(client, rollout)
    taken = list(collecting.in_order(0, PATIENCE_S))
    assert [rollout.generator_id for rollout in taken] == ["first", "by-hand"]


def test_what_comes_after_its_round_was_released_is_cleared_away(collector: Open, client: redis.Redis) -> None:
    collecting = collector()
    collecting.expect(tasks_of(0, count=1))
    collecting.expect(tasks_of(1, count=1))
    for sample in range(2):
        send(client, rollout_of(tasks_of(0)[0], sample))
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0, count=1)
    collecting.release(before_round=1)
    send(client, rollout_of(tasks_of(0)[0], 0))
    for sample in range(2):
        send(client, rollout_of(tasks_of(1)[0], sample))
    assert ids(collecting.in_order(1, PATIENCE_S)) == expected(1, count=1)
    collecting.stop()
    assert client.xlen(KEYS.rollouts) == 2, "only those of round 1 are kept"
    assert collecting.held == 2


def test_a_late_twin_is_ignored(collector: Open, client: redis.Redis, redis_url: str) -> None:
    collecting = collector()
    tasks = tasks_of(0)
    collecting.expect(tasks)
    answer(redis_url, KEYS)
    for task in tasks:
        send(client, rollout_of(task, 1))
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0)
    send(client, rollout_of(tasks[0]))
    collecting.expect(tasks_of(1))
    answer(redis_url, KEYS)
    assert ids(collecting.in_order(1, PATIENCE_S)) == expected(1)
    collecting.release(before_round=2)
    assert client.xlen(KEYS.rollouts) == 0, "twins are cleared away with the others"


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("another prompt", lambda rollout: rollout.model_copy(update={"prompt_tokens": rollout.response_tokens})),
        ("another task", lambda rollout: rollout.model_copy(update={"task_id": "r000002-00077"})),
        ("a sample too many", lambda rollout: rollout.model_copy(update={"sample": 2})),
        ("weights too old", lambda rollout: rollout_of(tasks_of(2)[rollout.position], rollout.sample, version=0)),
        ("weights of its future", lambda rollout: rollout_of(tasks_of(2)[rollout.position], rollout.sample, version=3)),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_what_does_not_answer_its_task_is_not_trained(
    what: str, wrong: Callable[[Rollout], Rollout], known: bool, collector: Open, client: redis.Redis, redis_url: str
) -> None:
    """Whether it comes after the task is known or was there before."""
    collecting = collector(first_round=2)
    tasks = tasks_of(2)
    if known:
        collecting.expect(tasks)
    send(client, wrong(rollout_of(tasks[0])))
    if not known:
        collecting = collector(first_round=2)
        collecting.expect(tasks)
    answer(redis_url, KEYS)
    rollouts = list(collecting.in_order(2, PATIENCE_S))
    assert rollouts == [rollout_of(task, sample) for task in tasks for sample in range(2)], what
    collecting.release(before_round=3)
    assert client.xlen(KEYS.rollouts) == 0, "what was refused goes with the round"


def test_a_rollout_of_a_place_without_a_task_is_buried_by_that_name(
    collector: Open, client: redis.Redis, redis_url: str
) -> None:
    collecting = collector()
    collecting.expect(tasks_of(0))
    send(client, rollout_of(tasks_of(0)[0]).model_copy(update={"position": 9, "task_id": "r000000-00009"}))
    answer(redis_url, KEYS)
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0)
    assert [letter.reason for letter in read_dead_letters(client, KEYS)] == ["round 0 has no task at position 9"]


def test_rollouts_for_another_purpose_are_left_to_their_owner(collector: Open, client: redis.Redis) -> None:
    task = tasks_of(0)[0]
    send(client, rollout_of(task).model_copy(update={"purpose": Purpose.EVALUATION}))
    collecting = collector(first_round=1)
    assert collecting.held == 0
    assert client.xlen(KEYS.rollouts) == 1


def test_a_redis_that_comes_back_empty_is_given_its_tasks_again(
    collector: Open, client: redis.Redis, redis_url: str
) -> None:
    collecting = collector()
    collecting.expect(tasks_of(0))
    collecting.expect(tasks_of(1))
    first_half = answer(redis_url, KEYS, count=4)
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0)
    client.flushall()
    assert {task.round for task in first_half} == {0}
    second_half = answer(redis_url, KEYS)
    assert [task.task_id for task in second_half] == [task.task_id for task in tasks_of(1)], "only what was lost"
    assert ids(collecting.in_order(1, PATIENCE_S)) == expected(1)
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0), "what is here is not asked for again"
    assert collecting.reissued == 4


def test_a_redis_that_is_lost_again_and_again_is_not_held_against_the_tasks(
    collector: Open, client: redis.Redis, redis_url: str
) -> None:
    collecting = collector()
    collecting.expect(tasks_of(0, count=1))
    leased: list[str] = []

    def only_lease(leases: list[Lease]) -> list[Lease]:
        leased.extend(lease.task.task_id for lease in leases)
        return []

    for _ in range(MAX_REISSUES + 2):
        answer(redis_url, KEYS, order=only_lease)
        client.flushall()
    assert leased == ["r000000-00000"] * (MAX_REISSUES + 2)
    answer(redis_url, KEYS)
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0, count=1)
    assert collecting.reissued == MAX_REISSUES + 2


def test_a_task_that_was_given_up_is_tried_again(collector: Open, redis_url: str) -> None:
    collecting = collector(recheck_after_s=0.05)
    collecting.expect(tasks_of(0, count=1))
    reject(redis_url, KEYS, "it kills who runs it")
    answer(redis_url, KEYS)
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0, count=1)


class CompletedBeforeUnknown(TaskIssuer):
    """All tasks are answered at the moment when the collector asks which of them Redis still has."""

    url = ""

    def unknown(self, tasks: Sequence[Task]) -> list[str]:
        answer(self.url, KEYS, block_s=0)
        return super().unknown(tasks)


def test_what_is_completed_while_the_collector_looks_for_lost_tasks_is_not_issued_again(
    client: redis.Redis, redis_url: str
) -> None:
    issuer = CompletedBeforeUnknown(client, KEYS)
    issuer.url = redis_url
    collecting = Collector(issuer, RolloutReader(client, KEYS), first_round=0, look_every_s=0.05, recheck_after_s=0.05)
    collecting.start()
    collecting.expect(tasks_of(0))
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0)
    collecting.stop()
    assert collecting.reissued == 0
    assert client.xlen(KEYS.tasks) == 0


class NotesWhatItCloses(TaskIssuer):
    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        super().__init__(client, keys)
        self.closed: list[str] = []
        self.done = threading.Event()

    def close(self, task_ids: Sequence[str]) -> int:
        self.closed += task_ids
        closed = super().close(task_ids)
        self.done.set()
        return closed


def test_a_redis_that_has_forgotten_completions_is_told_which_tasks_are_done(
    client: redis.Redis, redis_url: str
) -> None:
    """It restarts from a copy without its last second: nobody shall sample again what is here."""
    issuer = NotesWhatItCloses(client, KEYS)
    collecting = Collector(issuer, RolloutReader(client, KEYS), first_round=0, look_every_s=0.05)
    collecting.start()
    collecting.expect(tasks_of(0))
    answer(redis_url, KEYS, count=2)
    assert ids(islice(collecting.in_order(0, PATIENCE_S), 4)) == expected(0)[:4]
    TaskIssuer(client, KEYS).issue(tasks_of(0)[:2])
    client.set(KEYS.incarnation, b"of the copy")
    assert issuer.done.wait(PATIENCE_S)
    assert issuer.closed == [task.task_id for task in tasks_of(0)[:2]]
    assert [task.position for task in answer(redis_url, KEYS, block_s=0)] == [2, 3]
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0)
    collecting.stop()
    assert collecting.reissued == 0


def test_what_is_discarded_is_not_left_to_generators(collector: Open, client: redis.Redis, redis_url: str) -> None:
    collecting = collector()
    collecting.expect(tasks_of(0))
    collecting.expect(tasks_of(1))
    answer(redis_url, KEYS, count=1)
    collecting.discard_from(0)
    assert (client.xlen(KEYS.tasks), client.hlen(KEYS.open), client.xlen(KEYS.rollouts)) == (0, 0, 0)
    assert collecting.held == 0


def test_a_redis_that_hangs_keeps_nothing_from_being_said(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    class Hanging(RolloutReader):
        def read(self, block_s: float, count: int = 256) -> list[tuple[bytes, Rollout]]:
            if block_s:
                released.wait(PATIENCE_S)
            return []

    monkeypatch.setattr("learner.rollouts.collector.JOIN_S", 0.05)
    collecting = Collector(TaskIssuer(client, KEYS), Hanging(client, KEYS), first_round=0)
    collecting.start()
    with pytest.raises(DeadlineError) as late:
        collecting.discard_from(0)
    released.set()
    assert (late.value.who, late.value.what, late.value.seconds) == ("Redis", "the end of a read", 0.05)


def test_a_rollout_that_answers_another_task_of_this_place_is_not_here(collector: Open, redis_url: str) -> None:
    collecting = collector()
    collecting.expect(tasks_of(0))
    answer(redis_url, KEYS)
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0)
    assert collecting.has(tasks_of(0))
    other = tasks_of(0)[3].model_copy(update={"temperature": 0.9})
    assert not collecting.has([*tasks_of(0)[:3], other]), "as after the settings have changed"


def from_the_future(task: Task) -> list[Rollout]:
    return [rollout_of(task, sample, version=9) for sample in range(2)]


class RefusedAfterUnknown(TaskIssuer):
    """All other tasks are answered wrongly just after the collector has asked which of them Redis still has."""

    url = ""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        super().__init__(client, keys)
        self.done = threading.Event()

    def unknown(self, tasks: Sequence[Task]) -> list[str]:
        found = super().unknown(tasks)
        if not self.done.is_set():
            answer(self.url, KEYS, block_s=0, respond=from_the_future)
            self.done.set()
        return found


def test_what_is_refused_while_the_collector_looks_for_lost_tasks_is_issued_again_at_once(
    client: redis.Redis, redis_url: str
) -> None:
    issuer = RefusedAfterUnknown(client, KEYS)
    issuer.url = redis_url
    collecting = Collector(issuer, RolloutReader(client, KEYS), first_round=0, recheck_after_s=600.0)
    collecting.start()
    collecting.expect(tasks_of(0))
    answer(redis_url, KEYS, count=1, respond=from_the_future)
    assert issuer.done.wait(PATIENCE_S)
    with Answering(redis_url, KEYS):
        assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0), "not only after a silence"
    collecting.stop()
    assert collecting.reissued == 4


def test_a_task_that_is_given_up_every_time_ends_the_run_by_name(collector: Open, redis_url: str) -> None:
    collecting = collector(recheck_after_s=0.05)
    collecting.expect(tasks_of(0, count=1))
    for _ in range(MAX_REISSUES + 1):
        reject(redis_url, KEYS, "it kills who runs it")
    with pytest.raises(ContractError, match="r000000-00000 was issued 4 times and never done: r000000-00000 is cu"):
        list(collecting.in_order(0, PATIENCE_S))


def test_a_task_that_is_given_up_without_a_word_ends_the_run_all_the_same(client: redis.Redis, redis_url: str) -> None:
    collecting = Collector(TaskIssuer(client, KEYS), RolloutReader(client, KEYS), first_round=0, recheck_after_s=0.05)
    collecting.start()
    collecting.expect(tasks_of(0, count=1))
    for _ in range(MAX_REISSUES + 1):
        reject(redis_url, KEYS, "it kills who runs it")
    with pytest.raises(ContractError, match="never done: nothing says why"):
        list(collecting.in_order(0, PATIENCE_S))
    collecting.stop()


def test_tasks_that_are_sampled_anew_after_a_rollback_are_tried_as_often_again(collector: Open, redis_url: str) -> None:
    collecting = collector(recheck_after_s=0.05)
    for _ in range(2):
        collecting.expect(tasks_of(0, count=1))
        for _ in range(MAX_REISSUES):
            reject(redis_url, KEYS, "it kills who runs it")
        collecting.discard_from(0)
    collecting.expect(tasks_of(0, count=1))
    answer(redis_url, KEYS)
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0, count=1)


def test_answers_that_are_always_refused_end_the_wait_at_its_deadline_by_name(collector: Open, redis_url: str) -> None:
    """However often they come: a bad generator does not end the wait for a good one sooner, nor make it longer."""
    collecting = collector()
    collecting.expect(tasks_of(0, count=1))
    for _ in range(MAX_REISSUES + 1):
        answer(redis_url, KEYS, respond=lambda task: [rollout_of(task, sample, version=9) for sample in range(2)])
    with pytest.raises(DeadlineError, match=r"r000000-00000.* of by-hand: sampled by version 9"):
        list(collecting.in_order(0, 0.5))


def test_what_is_refused_is_buried_by_name_and_sampled_again_at_once(
    collector: Open, client: redis.Redis, redis_url: str
) -> None:
    collecting = collector()
    collecting.expect(tasks_of(0, count=2))

    def warmer(task: Task) -> list[Rollout]:
        return [rollout.model_copy(update={"temperature": 1.0}) for rollout in answers(task)]

    answer(redis_url, KEYS, count=1, respond=warmer)
    answer(redis_url, KEYS)
    answer(redis_url, KEYS)
    assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0, count=2)
    letters = read_dead_letters(client, KEYS)
    assert [letter.generator_id for letter in letters] == ["by-hand", "by-hand"]
    assert letters[0].reason == "sampled at temperature 1, the task asks for 0.6"
    assert client.xlen(KEYS.rollouts) == 4


def test_a_generator_that_fails_often_is_refused_and_another_goes_on(
    collector: Open, client: redis.Redis, redis_url: str
) -> None:
    told: list[tuple[str, str]] = []
    collecting = collector(on_refusal=lambda generator_id, reason: told.append((generator_id, reason)))
    tasks = tasks_of(0)
    collecting.expect(tasks)

    async def misbehave(leaser: TaskLeaser) -> None:
        try:
            while True:
                for lease in await leaser.lease(1, 1.0):
                    wrong = [rollout.model_copy(update={"temperature": 1.0}) for rollout in answers(lease.task)]
                    await leaser.complete(lease, wrong)
        finally:
            await leaser.leave()

    with pytest.raises(UnavailableError, match="takes no answers of by-hand for a while: sampled at temperature 1"):
        with_leaser(redis_url, KEYS, misbehave)
    assert [generator_id for generator_id, _ in told] == ["by-hand"]
    with Answering(redis_url, KEYS, by="another"):
        assert ids(collecting.in_order(0, PATIENCE_S)) == expected(0)
    client.hset(KEYS.refused, "by-hand", "1 long ago")
    assert answer(redis_url, KEYS, block_s=0) == [], "it may come back"


def test_a_task_that_is_open_as_it_was_asked_for_before_is_asked_for_anew(collector: Open, redis_url: str) -> None:
    """As when the settings have changed, or somebody has changed the task."""
    collector().expect([task.model_copy(update={"temperature": 0.9}) for task in tasks_of(0)])
    answer(redis_url, KEYS, count=1)
    again = collector()
    again.expect(tasks_of(0))
    answered = answer(redis_url, KEYS)
    assert answered == tasks_of(0), "also the one whose answer is there"
    assert ids(again.in_order(0, PATIENCE_S)) == expected(0)


@pytest.mark.parametrize("entry_id", [b"of another kind", b"1-1", None])
def test_a_place_in_the_queue_that_is_none_does_not_keep_a_task_from_being_issued(
    entry_id: bytes | None, collector: Open, client: redis.Redis, redis_url: str
) -> None:
    """None: that of another task."""
    collecting = collector()
    collecting.expect(tasks_of(0))
    first, second = (task.task_id for task in tasks_of(0)[:2])
    client.hset(KEYS.open, first, entry_id or client.hget(KEYS.open, second) or b"")
    answer(redis_url, KEYS, order=lambda leases: [lease for lease in leases if lease.task.task_id != first])
    again = collector()
    again.expect(tasks_of(0))
    answer(redis_url, KEYS, respond=answers)
    assert ids(again.in_order(0, PATIENCE_S)) == expected(0)


def test_silence_ends_in_an_error_that_names_the_tasks(collector: Open) -> None:
    collecting = collector()
    collecting.expect(tasks_of(0))
    with pytest.raises(DeadlineError) as late:
        list(collecting.in_order(0, deadline_s=0.1))
    assert late.value.who == "the generators"
    first_three = "r000000-00000, r000000-00001, r000000-00002"
    assert late.value.what == f"round 0 lacks the rollouts of 4 tasks ({first_three} ...)"
    assert late.value.seconds >= 0.1
    collecting.expect(tasks_of(1, count=3))
    with pytest.raises(DeadlineError) as late:
        list(collecting.in_order(1, deadline_s=0.1))
    assert late.value.what == f"round 1 lacks the rollouts of 3 tasks ({first_three.replace('r000000', 'r000001')})"


def test_silence_before_the_wait_does_not_count(collector: Open, redis_url: str) -> None:
    """After a long pause, say, nothing has arrived for hours when the learner begins to wait."""
    collecting = collector()
    collecting.expect(tasks_of(0))
    collecting._last_arrival -= 1000 * PATIENCE_S
    began_to_wait = threading.Event()

    @contextmanager
    def waiting() -> Iterator[None]:
        began_to_wait.set()
        yield

    with ThreadPoolExecutor() as pool:
        collected = pool.submit(lambda: ids(collecting.in_order(0, PATIENCE_S, waiting)))
        assert began_to_wait.wait(PATIENCE_S)
        answer(redis_url, KEYS)
        assert collected.result(PATIENCE_S) == expected(0)


def test_whatever_arrives_puts_the_deadline_off(collector: Open) -> None:
    """The deadline is one of silence: while anything comes in, generators work."""
    collecting = collector()
    collecting.expect(tasks_of(0))
    began = time.monotonic()
    collecting._last_arrival = began + 0.3
    with pytest.raises(DeadlineError):
        list(collecting.in_order(0, deadline_s=0.1))
    assert time.monotonic() - began >= 0.4


def test_a_round_that_is_never_issued_ends_in_an_error_too(collector: Open) -> None:
    with pytest.raises(DeadlineError, match="round 3"):
        list(collector().in_order(3, deadline_s=0.1))


def test_waiting_may_begin_before_the_round_is_issued(collector: Open, redis_url: str) -> None:
    collecting = collector()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: ids(collecting.in_order(0, PATIENCE_S)))
        collecting.expect(tasks_of(0))
        answer(redis_url, KEYS)
        assert waiting.result(PATIENCE_S) == expected(0)


def test_an_interrupt_ends_the_wait(collector: Open) -> None:
    collecting = collector()
    collecting.expect(tasks_of(0))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: ids(collecting.in_order(0, PATIENCE_S)))
        collecting.interrupt()
        with pytest.raises(Interrupted):
            waiting.result(PATIENCE_S)


def test_whoever_waits_hears_why_it_is_in_vain(collector: Open) -> None:
    collecting = collector()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: ids(collecting.in_order(0, PATIENCE_S)))
        collecting.fail(UnavailableError("the disk is full"))
        with pytest.raises(UnavailableError, match="the disk is full"):
            waiting.result(PATIENCE_S)
    collecting.fail(UnavailableError("what came of it"))
    with pytest.raises(UnavailableError, match="the disk is full"):
        next(collecting.in_order(0, PATIENCE_S))


def test_waits_are_accounted_for(collector: Open, client: redis.Redis) -> None:
    (task,) = tasks_of(0, count=1)
    answers = [rollout_of(task, sample) for sample in range(2)]
    waits: list[str] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        waits.append("begun")
        send(client, answers[len(waits) // 2])
        yield
        waits.append("ended")

    collecting = collector()
    collecting.expect([task])
    assert ids(collecting.in_order(0, PATIENCE_S, waiting)) == expected(0, count=1)
    assert waits == ["begun", "ended"] * 2, "one for each answer, as each came alone"
    assert ids(collecting.in_order(0, PATIENCE_S, waiting)) == expected(0, count=1)
    assert len(waits) == 4, "nothing had to be waited for"


def test_it_stops_long_before_it_would_look_at_redis_again(client: redis.Redis) -> None:
    made = Collector(TaskIssuer(client, KEYS), RolloutReader(client, KEYS), first_round=0, look_every_s=20.0)
    made.start()
    began = time.monotonic()
    made.stop()
    assert time.monotonic() - began < 15.0
