"""The store makes versions visible whole or not at all, reads them exactly, and keeps what is still needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.contracts import FileKind, WeightManifest
from services.errors import ContractError, DigestError, VersionNotFoundError, WeightError
from services.weights.store import WeightStore
from services.weights.tensors import RawTensor, Tensors
from tests.support.endpoint import open_store
from tests.support.weight_samples import adapted_version, base_version, bits, first_version, next_version, tensor


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return open_store(tmp_path / "weights")


def publish(store: WeightStore, count: int) -> list[Tensors]:
    """Versions 0 .. count - 1."""
    history: list[Tensors] = [first_version()]
    store.publish(0, history[0])
    for version in range(1, count):
        history.append(next_version(history[-1], version))
        store.publish(version, history[-1])
    return history


def files_of(store: WeightStore, version: int) -> dict[str, Path]:
    return {entry.name: store.file_path(version, entry.name) for entry in store.manifest(version).files}


def kinds(manifest: WeightManifest) -> set[FileKind]:
    return {entry.kind for entry in manifest.files}


def test_an_empty_store_has_no_latest_version(store: WeightStore) -> None:
    assert store.latest() is None
    assert store.versions() == []


def test_every_version_is_read_back_to_the_bit_by_another_process(store: WeightStore) -> None:
    history = publish(store, 10)
    reader = open_store(store.folder)
    assert [bits(reader.load(version)) for version in range(10)] == [bits(tensors) for tensors in history]


def test_every_version_has_a_delta_and_every_anchor_a_snapshot(store: WeightStore) -> None:
    publish(store, 10)
    snapshots = [v for v in store.versions() if FileKind.SNAPSHOT in kinds(store.manifest(v))]
    deltas = [v for v in store.versions() if FileKind.DELTA in kinds(store.manifest(v))]
    assert snapshots == [0, 4, 8]
    assert deltas == list(range(1, 10))


def test_a_delta_that_would_not_be_smaller_gives_way_to_a_snapshot(store: WeightStore) -> None:
    store.publish(0, first_version(0))
    assert kinds(store.publish(1, first_version(100))) == {FileKind.SNAPSHOT}
    assert store.manifest(1).parent_version is None


def test_a_version_without_its_parent_in_the_store_is_a_snapshot(store: WeightStore) -> None:
    assert kinds(store.publish(7, first_version())) == {FileKind.SNAPSHOT}


def test_a_resumed_writer_continues_the_chain_from_disk(store: WeightStore) -> None:
    history = publish(store, 3)
    resumed = open_store(store.folder)
    after = next_version(history[-1], 3)
    assert kinds(resumed.publish(3, after)) == {FileKind.DELTA}
    assert bits(resumed.load(3)) == bits(after)


def test_version_0_carries_the_model_files(store: WeightStore, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    manifest = store.publish(0, first_version(), {"config.json": tmp_path / "config.json"})
    assert [entry.name for entry in manifest.files if entry.kind is FileKind.MODEL] == ["config.json"]
    assert store.file_path(0, "config.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["../config.json", "a/b", ".hidden", "", "manifest.json", "model.safetensors"])
def test_a_model_file_with_an_unfit_name_is_refused(store: WeightStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "f").write_text("{}")
    with pytest.raises(WeightError):
        store.publish(0, first_version(), {name: tmp_path / "f"})
    assert store.latest() is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "manifest.json", "..", "delta.bin", ""])
def test_only_files_that_the_manifest_lists_are_found(store: WeightStore, name: str) -> None:
    publish(store, 1)
    with pytest.raises(VersionNotFoundError):
        store.file_path(0, name)


def test_what_dies_before_the_manifest_leaves_nothing_visible(store: WeightStore, tmp_path: Path) -> None:
    history = publish(store, 2)
    # the second model file is missing, so the writer fails after it has written the snapshot and the first one
    (tmp_path / "a").write_text("a")
    with pytest.raises(FileNotFoundError):
        store.publish(2, next_version(history[-1], 2), {"a": tmp_path / "a", "b": tmp_path / "missing"})
    assert store.versions() == [0, 1]
    assert [path.name for path in store.folder.iterdir() if not path.name.isdecimal()] == []


def test_a_killed_writer_s_leftovers_are_invisible_and_cleared_by_the_next(store: WeightStore) -> None:
    history = publish(store, 2)
    leftover = store.folder / ".partial-killed"
    leftover.mkdir()
    (leftover / "delta.bin").write_bytes(b"half")
    (store.folder / "00000002").mkdir()  # a folder without its manifest is no version either
    resumed = open_store(store.folder)
    assert resumed.latest() == store.manifest(1)
    resumed.publish(2, next_version(history[-1], 2))
    assert not leftover.exists()
    assert resumed.latest() == resumed.manifest(2)


def test_publishing_the_same_again_changes_nothing(store: WeightStore) -> None:
    history = publish(store, 4)
    before = store.manifest(2)
    assert open_store(store.folder).publish(2, history[2]) == before
    assert store.versions() == [0, 1, 2, 3]


def test_publishing_other_content_replaces_the_version_and_drops_the_later_ones(store: WeightStore) -> None:
    history = publish(store, 6)
    other = next_version(history[1], 99)
    resumed = open_store(store.folder)
    manifest = resumed.publish(2, other)
    assert store.versions() == [0, 1, 2]
    assert store.latest() == manifest, "a reader that had the old manifest in its cache sees the new one"
    assert bits(store.load(2)) == bits(other)


def test_a_version_below_the_kept_ones_also_drops_the_later_ones(tmp_path: Path) -> None:
    store = open_store(tmp_path / "weights", keep_versions=3)
    history = publish(store, 12)
    store.publish(5, history[5])
    assert store.versions() == [0, 5]


def test_retired_versions_go_but_nothing_that_a_kept_one_is_built_from(tmp_path: Path) -> None:
    store = open_store(tmp_path / "weights", keep_versions=3)
    history = publish(store, 12)
    assert store.versions() == [0, 8, 9, 10, 11], "9, 10, 11 are kept; they are built from the snapshot of 8"
    assert all(bits(store.load(version)) == bits(history[version]) for version in store.versions())


def test_a_damaged_file_is_found_by_its_tensors(store: WeightStore) -> None:
    publish(store, 1)
    path = store.file_path(0, "model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestError):
        open_store(store.folder).load(0)


def test_a_folder_of_another_run_is_refused(store: WeightStore) -> None:
    publish(store, 1)
    with pytest.raises(WeightError, match="of run 'run', not of 'other'"):
        open_store(store.folder, "other").latest()


def test_adopted_versions_are_those_that_were_published_elsewhere(store: WeightStore, tmp_path: Path) -> None:
    history = publish(store, 6)
    copy = open_store(tmp_path / "copy")
    for version in range(6):
        copy.adopt(store.manifest(version), files_of(store, version))
    assert copy.latest() == store.latest()
    assert bits(copy.load(5)) == bits(history[5])


def test_adopting_twice_is_once(store: WeightStore, tmp_path: Path) -> None:
    publish(store, 1)
    copy = open_store(tmp_path / "copy")
    files = files_of(store, 0)
    copy.adopt(store.manifest(0), files)
    copy.adopt(store.manifest(0), {})
    assert copy.versions() == [0]


def _changed(manifest: WeightManifest, **fields: object) -> WeightManifest:
    return WeightManifest.model_validate(manifest.model_dump() | fields)


def test_nothing_untrue_is_adopted(store: WeightStore, tmp_path: Path) -> None:
    publish(store, 3)
    first, second = store.manifest(0), store.manifest(1)
    copy = open_store(tmp_path / "copy")
    cases: list[tuple[WeightManifest, dict[str, Path], type[WeightError] | type[ContractError]]] = [
        (_changed(first, run_id="other"), files_of(store, 0), ContractError),
        (_changed(first, digest="0" * 64), files_of(store, 0), DigestError),
        (first, {}, ContractError),
        (first, {"model.safetensors": store.file_path(1, "delta.bin")}, DigestError),
        (_changed(first, files=()), {}, ContractError),
        (second, files_of(store, 1), VersionNotFoundError),
        (_changed(first, tensors=second.tensors, digest=second.digest), files_of(store, 0), DigestError),
    ]
    for manifest, files, error in cases:
        with pytest.raises(error):
            copy.adopt(manifest, files)
    assert copy.versions() == []


def test_a_delta_to_another_parent_is_not_adopted(store: WeightStore, tmp_path: Path) -> None:
    publish(store, 2)
    copy = open_store(tmp_path / "copy")
    copy.publish(0, first_version(50))
    with pytest.raises(WeightError, match="continues another version"):
        copy.adopt(store.manifest(1), files_of(store, 1))
    assert copy.versions() == [0]


def test_every_element_type_passes_through_snapshots_and_deltas(store: WeightStore) -> None:
    kinds_ = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8"]
    before = {name: tensor(name, (40, 50)) for name in kinds_}
    after = {}
    for name, old in before.items():
        data = old.data.copy()
        data[np.array([0, data.size // 2, data.size - 1])] ^= 0x55
        after[name] = RawTensor(old.dtype, old.shape, data)
    store.publish(0, before)
    assert kinds(store.publish(1, after)) == {FileKind.DELTA}
    assert bits(open_store(store.folder).load(1)) == bits(after)


def publish_adapted(store: WeightStore, count: int) -> list[Tensors]:
    """Version 0, then what adapters make of it."""
    base = base_version()
    store.publish(0, base)
    history: list[Tensors] = [base]
    for version in range(1, count):
        tensors, packed = adapted_version(base, version)
        store.publish(version, tensors, packed=packed)
        history.append(tensors)
    return history


def test_adapters_are_all_that_a_version_of_theirs_holds(store: WeightStore) -> None:
    history = publish_adapted(store, 6)
    for version in range(1, 6):
        manifest = store.manifest(version)
        assert kinds(manifest) == {FileKind.ADAPTERS}, "not even a snapshot at 4, the anchor"
        assert (manifest.parent_version, manifest.parent_digest) == (0, store.manifest(0).digest)
    reader = open_store(store.folder)
    assert [bits(reader.load(version)) for version in range(6)] == [bits(tensors) for tensors in history]


def test_what_adapters_change_is_never_retired(tmp_path: Path) -> None:
    store = open_store(tmp_path / "weights", keep_versions=3)
    history = publish_adapted(store, 12)
    assert store.versions() == [0, 9, 10, 11]
    assert all(bits(store.load(version)) == bits(history[version]) for version in store.versions())


def test_a_run_may_change_what_it_sends(tmp_path: Path) -> None:
    store = open_store(tmp_path / "weights", keep_versions=3)
    history = publish_adapted(store, 6)
    store.publish(6, adapted_version(history[0], 6)[0])
    assert kinds(store.manifest(6)) == {FileKind.DELTA}
    tensors, packed = adapted_version(history[0], 7)
    assert kinds(store.publish(7, tensors, packed=packed)) == {FileKind.ADAPTERS}
    assert store.versions() == [0, 5, 6, 7]
    assert bits(open_store(store.folder).load(6)) == bits(adapted_version(history[0], 6)[0])


def test_adapters_that_make_another_version_are_not_sent(store: WeightStore) -> None:
    """Neither of the layers that they change, nor of the others."""
    base = publish_adapted(store, 2)[0]
    tensors, _ = adapted_version(base, 2)
    _, packed = adapted_version(base, 3)
    assert kinds(store.publish(2, tensors, packed=packed)) == {FileKind.DELTA}
    tensors, packed = adapted_version(base, 4)
    tensors["model.layers.0.norm.weight"] = tensor("F32", (16,), seed=9)
    assert kinds(store.publish(3, tensors, packed=packed)) == {FileKind.DELTA}
    assert bits(open_store(store.folder).load(3)) == bits(tensors)


def test_adapters_need_their_base(store: WeightStore) -> None:
    tensors, packed = adapted_version(base_version(), 1)
    assert kinds(store.publish(5, tensors, packed=packed)) == {FileKind.SNAPSHOT}


def test_adopted_adapters_are_those_that_were_published_elsewhere(store: WeightStore, tmp_path: Path) -> None:
    history = publish_adapted(store, 4)
    copy = open_store(tmp_path / "copy")
    for version in range(3):
        copy.adopt(store.manifest(version), files_of(store, version))
    assert bits(open_store(copy.folder).load(2)) == bits(history[2])
    wrong = store.manifest(3)
    others = {"adapters.safetensors": copy.file_path(2, "adapters.safetensors")}
    entry = copy.manifest(2).files[0]
    with pytest.raises(DigestError, match="does not have the digest"):
        copy.adopt(wrong.model_copy(update={"files": (entry,)}), others)
    assert copy.versions() == [0, 1, 2]
