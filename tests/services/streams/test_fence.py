"""Once another learner has taken over, the one before it changes nothing, on disk or in Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import redis

from services.contracts import Part
from services.errors import DeadlineError, FencedError
from services.streams import fence as fencing
from services.streams import scripts
from services.streams.connection import Keys
from services.streams.control import Control
from services.streams.events import EventLog
from services.streams.fence import MAX_EPOCH, Fence, take_over
from services.streams.heartbeats import Heartbeats
from services.streams.rollouts import RolloutReader
from services.streams.tasks import TaskIssuer
from tests.support.heartbeats import heartbeat
from tests.support.stream_builders import make_rollouts, make_task


def test_epochs_rise_whichever_of_file_and_redis_is_lost(client: redis.Redis, keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    assert [take_over(client, keys, path).epoch for _ in range(2)] == [1, 2]
    client.delete(keys.epoch)
    assert take_over(client, keys, path).epoch == 3
    path.unlink()
    assert take_over(client, keys, path).epoch == 4


@pytest.mark.parametrize("nobodys", [b"9" * 400, b"%d" % MAX_EPOCH, b"-3", b"not a number"])
def test_what_no_learner_wrote_does_not_count(nobodys: bytes, client: redis.Redis, keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    path.write_bytes(nobodys)
    client.set(keys.epoch, nobodys)
    assert take_over(client, keys, path).epoch == 1
    assert (path.read_bytes(), client.get(keys.epoch)) == (b"1\n", b"1")


@pytest.mark.parametrize("seen_by", ["file", "redis"])
def test_the_largest_epoch_that_a_learner_can_have_counts(
    seen_by: str, client: redis.Redis, keys: Keys, tmp_path: Path
) -> None:
    if seen_by == "file":
        (tmp_path / "epoch").write_text(f"{MAX_EPOCH - 1}\n")
    else:
        client.set(keys.epoch, MAX_EPOCH - 1)
    assert take_over(client, keys, tmp_path / "epoch").epoch == MAX_EPOCH


@pytest.mark.parametrize("seen_by", ["file", "redis"])
def test_a_learner_that_was_replaced_changes_nothing(
    seen_by: str, client: redis.Redis, keys: Keys, tmp_path: Path
) -> None:
    """Each of the two places is enough: the other may have been lost."""
    old = take_over(client, keys, tmp_path / "epoch")
    task = make_task(0)
    writers: list[Callable[[], object]] = [
        lambda: TaskIssuer(client, keys, old),
        lambda: EventLog(client, keys, old).append("learner", "published"),
        lambda: Control(client, keys, old).set_paused(True),
        lambda: Control(client, keys, old).rollback_done(3),
        lambda: Heartbeats(client, keys, old).send(heartbeat(Part.LEARNER, "learner", "training")),
        lambda: RolloutReader(client, keys, old).delete([b"1-1"]),
        lambda: RolloutReader(client, keys, old).bury(b"1-1", make_rollouts(task)[0], "why"),
    ]
    issuer = TaskIssuer(client, keys, old)
    writers += [lambda: issuer.issue([task]), lambda: issuer.close(["a"]), lambda: issuer.refuse("g", 1, "why")]
    for write in writers:
        write()
    client.flushall()
    take_over(client, keys, tmp_path / "epoch" if seen_by == "file" else tmp_path / "elsewhere")
    client.set(keys.epoch, 2) if seen_by == "redis" else client.delete(keys.epoch)
    before = {key: client.dump(key) for key in client.scan_iter()}
    for write in writers:
        with pytest.raises(FencedError, match=r"taken over this run \(epoch 2, this one has 1\)"):
            write()
    assert {key: client.dump(key) for key in client.scan_iter()} == before


def test_a_redis_that_came_back_empty_is_told_the_epoch(client: redis.Redis, keys: Keys, tmp_path: Path) -> None:
    own = take_over(client, keys, tmp_path / "epoch")
    client.flushall()
    Control(client, keys, own).set_paused(True)
    assert client.get(keys.epoch) == b"1"


def test_a_change_on_disk_is_refused_at_its_end_when_somebody_took_over_meanwhile(
    client: redis.Redis, keys: Keys, tmp_path: Path
) -> None:
    old = take_over(client, keys, tmp_path / "epoch")
    with pytest.raises(FencedError), old.guard_after(nullcontext()):
        take_over(client, keys, tmp_path / "epoch")


def test_nobody_takes_over_in_the_middle_of_a_change(
    client: redis.Redis, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fencing, "LOCKED_S", 0.1)
    own = take_over(client, keys, tmp_path / "epoch")
    with own.guard(), own.guard(), pytest.raises(DeadlineError, match="in the middle of a change"):
        take_over(client, keys, tmp_path / "epoch")
    assert take_over(client, keys, tmp_path / "epoch").epoch == 2


def test_every_change_is_guarded_and_not_the_first_alone(
    client: redis.Redis, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fencing, "LOCKED_S", 0.1)
    path = tmp_path / "epoch"
    own = take_over(client, keys, path)
    for _ in range(3):
        with own.guard(), own.guard():
            pass
        with own.guard(), pytest.raises(DeadlineError):
            take_over(client, keys, path)
    take_over(client, keys, path)
    for _ in range(2):
        with pytest.raises(FencedError), own.guard():
            pass


def test_threads_of_one_learner_wait_for_each_other(client: redis.Redis, keys: Keys, tmp_path: Path) -> None:
    own = take_over(client, keys, tmp_path / "epoch")
    inside: list[int] = []
    seen: list[int] = []

    def change() -> None:
        with own.guard():
            inside.append(1)
            seen.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=change) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8


def test_without_a_fence_nothing_is_checked(client: redis.Redis, keys: Keys) -> None:
    client.set(keys.epoch, 7)
    Fence().script(client, keys, scripts.REQUEST)([keys.control], ["paused", 1])
    assert Fence().epoch == 0
    with Fence().guard():
        assert client.hget(keys.control, "paused") == b"1"
