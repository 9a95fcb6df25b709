"""Damaged versions are made again: when a learner starts, and when a generator says that it cannot build one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from learner.publisher import VersionContents
from learner.repair import REPORTED, DamageReports, StoreRepair
from services.errors import WeightError
from services.streams.connection import Keys, connect
from services.streams.events import EventLog
from services.weights.damage import find_damage
from services.weights.publisher import WeightPublisher
from services.weights.reader import DELTA_NAME, SNAPSHOT_NAME
from tests.support.endpoint import open_store
from tests.support.stream_builders import last_events
from tests.support.weight_samples import bits, first_version, publish_versions

KEYS = Keys("repair")


def spoil(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def store(tmp_path: Path) -> WeightPublisher:
    """Versions 0 to 6 with snapshots of 0 and 4."""
    return open_store(tmp_path / "weights", KEYS.run_id)


@pytest.fixture
def repair(store: WeightPublisher, client: redis.Redis, tmp_path: Path) -> StoreRepair:
    (tmp_path / "config.json").write_text("{}")
    base = VersionContents(first_version(), {"config.json": tmp_path / "config.json"})
    return StoreRepair(store, lambda: base, EventLog(client, KEYS))


def kinds(client: redis.Redis) -> list[tuple[str, int]]:
    return [(event.kind, event.fields["weight_version"]) for event in last_events(client, KEYS)]


def test_a_learner_that_starts_makes_version_0_again_and_drops_what_is_lost(
    store: WeightPublisher, repair: StoreRepair, client: redis.Redis
) -> None:
    history = publish_versions(store, 7)
    spoil(store.folder_of(0) / SNAPSHOT_NAME)
    spoil(store.folder_of(5) / DELTA_NAME)
    repair.at_start()
    assert store.versions() == [0, 1, 2, 3, 4]
    assert find_damage(store) == {}
    assert bits(store.load(3)) == bits(history[3]), "version 0 is the same again"
    assert (store.folder_of(0) / "config.json").read_text() == "{}"
    assert ("version_restored", 0) in kinds(client)
    assert ("version_unusable", 5) in kinds(client)


def test_a_store_that_is_gone_begins_again_with_the_models_files(store: WeightPublisher, repair: StoreRepair) -> None:
    repair.at_start()
    assert store.versions() == [], "a run that begins publishes version 0 itself"
    repair.at_start(resumed=True)
    assert store.versions() == [0]
    assert (store.folder_of(0) / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "damage"),
    [("00000005/delta.bin", spoil), ("00000006/manifest.json", spoil), ("00000006/manifest.json", Path.unlink)],
)
def test_while_training_the_newest_version_is_made_again_from_memory(
    name: str, damage: Callable[[Path], object], store: WeightPublisher, repair: StoreRepair
) -> None:
    history = publish_versions(store, 7)
    digest = store.manifest(6).digest
    damage(store.folder / name)
    assert repair.while_training()
    assert store.versions() == [0, 1, 2, 3, 4, *([] if name.startswith("00000005") else [5]), 6]
    assert store.manifest(6).digest == digest
    assert bits(store.load(6)) == bits(history[6])
    assert not repair.while_training()


def test_a_newest_version_that_is_not_in_memory_sends_the_learner_back_to_its_checkpoint(
    store: WeightPublisher, client: redis.Redis
) -> None:
    publish_versions(store, 7)
    again = open_store(store.folder, KEYS.run_id)
    spoil(store.folder_of(6) / DELTA_NAME)
    repair = StoreRepair(again, lambda: VersionContents(first_version()), EventLog(client, KEYS))
    with pytest.raises(WeightError, match="weight version 6 is damaged"):
        repair.while_training()


def test_a_report_is_followed_once_and_a_false_one_not_again(client: redis.Redis) -> None:
    events = EventLog(client, KEYS)
    events.append("generator-0", REPORTED, reason="of a time before")
    looks = threading.Semaphore(0)

    def find_nothing() -> bool:
        looks.release()
        return False

    reports = DamageReports(events, find_nothing, lambda error: None, listen_s=0.01)
    reports.start()
    assert not looks.acquire(timeout=0.3)
    events.append("generator-0", REPORTED, reason="why")
    assert looks.acquire(timeout=20)
    events.append("generator-1", REPORTED, reason="why")
    assert not looks.acquire(timeout=0.3)
    reports.close()


def test_a_repair_that_fails_ends_whoever_waits(client: redis.Redis) -> None:
    events, failures, failed = EventLog(client, KEYS), [], threading.Event()

    def repair() -> bool:
        raise WeightError("it is gone")

    def note(error: BaseException) -> None:
        failures.append(error)
        failed.set()

    reports = DamageReports(events, repair, note, listen_s=0.01)
    reports.start()
    for _ in range(100):
        events.append("generator-0", REPORTED, reason="why")
        if failed.wait(0.1):
            break
    assert [str(error) for error in failures] == ["it is gone"]
    reports.close()
