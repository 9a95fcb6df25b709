"""Published versions are read back to the bit, and what is damaged or of another run is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from services.contracts import FileKind
from services.errors import DigestError, VersionNotFoundError, WeightError
from services.tensors import RawTensor
from services.weights.publisher import WeightPublisher
from services.weights.reader import WeightReader
from tests.support.endpoint import open_store
from tests.support.weight_samples import bits, next_version, publish_versions, tensor


def test_an_empty_folder_has_no_latest_version(tmp_path: Path) -> None:
    reader = WeightReader(tmp_path / "missing", "run")
    assert reader.latest() is None
    assert reader.versions() == []


def test_every_version_is_read_back_to_the_bit_by_another_process(store: WeightPublisher) -> None:
    history = publish_versions(store, 10)
    reader = WeightReader(store.folder, "run")
    assert [bits(reader.load(version)) for version in range(10)] == [bits(tensors) for tensors in history]


@pytest.mark.parametrize("name", ["../../etc/passwd", "manifest.json", "..", "delta.bin", ""])
def test_only_files_that_the_manifest_lists_are_found(store: WeightPublisher, name: str) -> None:
    publish_versions(store, 1)
    with pytest.raises(VersionNotFoundError, match=re.escape(f"weight version 0 has no file {name!r}")):
        store.file_path(0, name)


def test_a_damaged_file_is_found_by_its_tensors(store: WeightPublisher) -> None:
    publish_versions(store, 1)
    path = store.file_path(0, "model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestError):
        WeightReader(store.folder, "run").load(0)


@pytest.mark.parametrize(("name", "sound"), [("delta.bin", True), ("model.safetensors", False)])
def test_of_a_version_that_has_both_the_snapshot_is_read_and_checked(
    store: WeightPublisher, name: str, sound: bool
) -> None:
    """A delta that is right does not make up for a snapshot that is not."""
    history = publish_versions(store, 6)
    assert store.file_path(4, "delta.bin").exists() and store.file_path(4, "model.safetensors").exists()
    path = store.file_path(4, name)
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    for version in (4, 5):
        reader = WeightReader(store.folder, "run")
        if sound:
            assert bits(reader.load(version)) == bits(history[version])
        else:
            with pytest.raises(DigestError):
                reader.load(version)


def test_a_version_whose_parent_was_replaced_is_not_read_through_the_other_one(
    store: WeightPublisher, tmp_path: Path
) -> None:
    history = publish_versions(store, 3)
    other = open_store(tmp_path / "other")
    other.publish(0, history[0])
    other.publish(1, next_version(history[0], 77))
    shutil.rmtree(store.folder_of(1))
    shutil.copytree(other.folder_of(1), store.folder_of(1))
    with pytest.raises(WeightError, match="version 2 continues another version 1"):
        WeightReader(store.folder, "run").load(2)


def test_a_folder_that_holds_another_version_than_its_name_says_is_refused(store: WeightPublisher) -> None:
    publish_versions(store, 2)
    shutil.copytree(store.folder_of(1), store.folder_of(5))
    with pytest.raises(WeightError, match="is version 1 of run 'run'"):
        WeightReader(store.folder, "run").manifest(5)


def test_a_folder_of_another_run_is_refused(store: WeightPublisher) -> None:
    publish_versions(store, 1)
    with pytest.raises(WeightError, match="of run 'run', not of 'other'"):
        WeightReader(store.folder, "other").latest()


def test_every_element_type_passes_through_snapshots_and_deltas(store: WeightPublisher) -> None:
    kinds_ = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8"]
    before = {name: tensor(name, (40, 50)) for name in kinds_}
    after = {}
    for name, old in before.items():
        data = old.data.copy()
        data[np.array([0, data.size // 2, data.size - 1])] ^= 0x55
        after[name] = RawTensor(old.dtype, old.shape, data)
    store.publish(0, before)
    assert [entry.kind for entry in store.publish(1, after).files] == [FileKind.DELTA]
    assert bits(WeightReader(store.folder, "run").load(1)) == bits(after)


def test_only_whole_folders_named_by_a_number_are_versions(store: WeightPublisher) -> None:
    publish_versions(store, 2)
    shutil.copytree(store.folder_of(1), store.folder / "00000001.bak")
    shutil.copytree(store.folder_of(1), store.folder / "000000011")
    (store.folder / "00000007").write_text("a file")
    (store.folder / "00000008").mkdir()
    assert store.versions() == [0, 1]
    for version in (7, 8, 9):
        assert store.find(version) is None
        with pytest.raises(VersionNotFoundError, match=f"weight version {version} is not in the store"):
            store.manifest(version)


def test_a_version_that_goes_while_one_looks_leaves_the_one_before_as_the_newest(store: WeightPublisher) -> None:
    class Late(WeightReader):
        def versions(self) -> list[int]:
            return [*super().versions(), 8, 9]

    publish_versions(store, 2)
    assert Late(store.folder, "run").latest() == store.manifest(1)


@pytest.mark.parametrize("at", [1, -60])
def test_a_manifest_that_has_changed_since_it_was_written_is_refused(store: WeightPublisher, at: int) -> None:
    """Wherever the byte is, and each time it is asked for."""
    publish_versions(store, 1)
    path = store.manifest_path(0)
    content = bytearray(path.read_bytes())
    content[at] = ord("0") if content[at] != ord("0") else ord("1")
    path.write_bytes(content)
    reader = WeightReader(store.folder, "run")
    for _ in range(2):
        with pytest.raises(WeightError, match=r"manifest\.json has other bytes than were written"):
            reader.manifest(0)


def test_what_is_no_manifest_is_refused_as_such(store: WeightPublisher) -> None:
    publish_versions(store, 1)
    store.manifest_path(0).write_text("{}")
    with pytest.raises(WeightError, match=r"manifest\.json is not a manifest: \d+ errors"):
        WeightReader(store.folder, "run").manifest(0)


def test_a_manifest_that_was_replaced_is_read_anew(store: WeightPublisher) -> None:
    publish_versions(store, 1)
    reader = WeightReader(store.folder, "run")
    before = reader.manifest(0)
    open_store(store.folder).publish(0, next_version(store.load(0), 5))
    assert reader.manifest(0) == store.manifest(0) != before


def test_what_has_neither_snapshot_nor_parent_is_named(store: WeightPublisher) -> None:
    publish_versions(store, 1)
    with pytest.raises(WeightError, match="weight version 0 has neither snapshot nor parent"):
        store.parent_of(store.manifest(0))
