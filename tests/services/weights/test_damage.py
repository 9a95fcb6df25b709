"""Every byte of a version that is not what was written is found, and everything that was built from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from services.weights.damage import find_damage
from services.weights.publisher import WeightPublisher
from services.weights.reader import ADAPTERS_NAME, DELTA_NAME, MANIFEST_NAME, SNAPSHOT_NAME
from tests.support.endpoint import open_store
from tests.support.weight_samples import publish_versions

Damage = Callable[[Path], object]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture
def store(tmp_path: Path) -> WeightPublisher:
    """Versions 0 to 9 with snapshots of 0, 4 and 8."""
    store = open_store(tmp_path / "weights")
    publish_versions(store, 10)
    return store


def test_a_sound_store_has_none(store: WeightPublisher) -> None:
    assert find_damage(store) == {}


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize(
    ("version", "name", "unusable"),
    [
        (0, SNAPSHOT_NAME, [0, 1, 2, 3]),
        (2, DELTA_NAME, [2, 3]),
        (4, SNAPSHOT_NAME, [4, 5, 6, 7]),
        (9, DELTA_NAME, [9]),
        (5, MANIFEST_NAME, [5, 6, 7]),
        (0, MANIFEST_NAME, [0, 1, 2, 3]),
    ],
)
def test_what_is_damaged_and_what_is_made_of_it_is_named(
    version: int, name: str, unusable: list[int], damage: Damage, store: WeightPublisher
) -> None:
    if (version, name, damage) == (5, MANIFEST_NAME, Path.unlink):
        unusable = unusable[1:]  # a version without a manifest is none
    damage(store.folder_of(version) / name)
    assert sorted(find_damage(store)) == unusable


def test_a_restored_version_is_the_same_version(store: WeightPublisher, tmp_path: Path) -> None:
    before, tensors = store.manifest(2), store.load(2)
    flip(store.folder_of(2) / DELTA_NAME)
    assert store.restore(2, tensors).digest == before.digest
    assert find_damage(store) == {}
    assert store.versions() == list(range(10)), "later versions stay"
    assert not (store.folder_of(2) / ADAPTERS_NAME).exists()
