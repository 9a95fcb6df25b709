"""Versions become visible whole or not at all, are sent in the smaller form, and stay while they are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.contracts import FileKind, WeightManifest
from services.errors import WeightError
from services.tensors import Tensors
from services.weights import encoding, publisher
from services.weights.adapters import Adapter, merge, pack
from services.weights.delta import plain
from services.weights.publisher import WeightPublisher
from services.weights.reader import WeightReader
from tests.support.disk_order import disk_order
from tests.support.endpoint import open_store
from tests.support.weight_samples import (
    adapted_version,
    base_version,
    bits,
    first_version,
    flips_between,
    next_version,
    publish_versions,
    tensor,
)


def kinds(manifest: WeightManifest) -> set[FileKind]:
    return {entry.kind for entry in manifest.files}


def test_every_version_has_a_delta_and_every_anchor_a_snapshot(store: WeightPublisher) -> None:
    publish_versions(store, 10)
    snapshots = [v for v in store.versions() if FileKind.SNAPSHOT in kinds(store.manifest(v))]
    deltas = [v for v in store.versions() if FileKind.DELTA in kinds(store.manifest(v))]
    assert snapshots == [0, 4, 8]
    assert deltas == list(range(1, 10))


def test_a_delta_that_would_not_be_smaller_gives_way_to_a_snapshot(store: WeightPublisher) -> None:
    store.publish(0, first_version(0))
    assert kinds(store.publish(1, first_version(100))) == {FileKind.SNAPSHOT}
    assert store.manifest(1).parent_version is None


def test_a_version_without_its_parent_in_the_store_is_a_snapshot(store: WeightPublisher) -> None:
    assert kinds(store.publish(7, first_version())) == {FileKind.SNAPSHOT}


def test_a_resumed_writer_continues_the_chain_from_disk(store: WeightPublisher) -> None:
    history = publish_versions(store, 3)
    resumed = open_store(store.folder)
    after = next_version(history[-1], 3)
    assert kinds(resumed.publish(3, after)) == {FileKind.DELTA}
    assert bits(resumed.load(3)) == bits(after)


def test_version_0_carries_the_model_files(store: WeightPublisher, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    manifest = store.publish(0, first_version(), {"config.json": tmp_path / "config.json"})
    assert [entry.name for entry in manifest.files if entry.kind is FileKind.MODEL] == ["config.json"]
    assert store.file_path(0, "config.json").read_text() == "{}"


def test_model_files_may_stand_in_folders(store: WeightPublisher, tmp_path: Path) -> None:
    (tmp_path / "tool.jinja").write_text("{{ messages }}")
    name = "additional_chat_templates/tool.jinja"
    manifest = store.publish(0, first_version(), {name: tmp_path / "tool.jinja"})
    assert [entry.name for entry in manifest.files if entry.kind is FileKind.MODEL] == [name]
    assert store.file_path(0, name).read_text() == "{{ messages }}"


@pytest.mark.parametrize(
    "name", ["../config.json", "a/../b", "/etc/x", ".hidden", "", "manifest.json", "model.safetensors"]
)
def test_a_model_file_with_an_unfit_name_is_refused(store: WeightPublisher, tmp_path: Path, name: str) -> None:
    (tmp_path / "f").write_text("{}")
    with pytest.raises(WeightError):
        store.publish(0, first_version(), {name: tmp_path / "f"})
    assert store.latest() is None


def test_a_version_is_durable_before_it_is_seen_and_later_ones_go_newest_first(
    store: WeightPublisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So whenever the power goes, what is found is a complete history."""
    history = publish_versions(store, 4)
    (tmp_path / "config.json").write_text("{}")
    with disk_order(monkeypatch) as order:
        store.publish(4, next_version(history[-1], 4), {"config.json": tmp_path / "config.json"})
        store.publish(1, next_version(history[0], 99))
    assert order.finished() == []
    seen = [(verb, Path(path).name) for verb, path in order.steps if Path(path).parent == store.folder]
    changes = [step for step in seen if step[0] != "delete" and step[1].isdecimal()]
    gone = [("away", f"{version:08d}") for version in (4, 3, 2, 1)]
    assert changes == [("name", "00000004"), *gone, ("name", "00000001")]


def test_what_dies_before_the_manifest_leaves_nothing_visible(store: WeightPublisher, tmp_path: Path) -> None:
    history = publish_versions(store, 2)
    # the second model file is missing, so the writer fails after it has written the snapshot and the first one
    (tmp_path / "a").write_text("a")
    with pytest.raises(FileNotFoundError):
        store.publish(2, next_version(history[-1], 2), {"a": tmp_path / "a", "b": tmp_path / "missing"})
    assert store.versions() == [0, 1]
    assert [path.name for path in store.folder.iterdir() if not path.name.isdecimal()] == []


def test_a_killed_writer_s_leftovers_are_invisible_and_cleared_by_the_next(store: WeightPublisher) -> None:
    history = publish_versions(store, 2)
    leftover = store.folder / ".partial-killed"
    leftover.mkdir()
    (leftover / "delta.bin").write_bytes(b"half")
    (store.folder / "00000002").mkdir()  # a folder without its manifest is no version either
    resumed = open_store(store.folder)
    assert resumed.latest() == store.manifest(1)
    resumed.publish(2, next_version(history[-1], 2))
    assert not leftover.exists()
    assert resumed.latest() == resumed.manifest(2)


def test_publishing_the_same_again_changes_nothing(store: WeightPublisher) -> None:
    history = publish_versions(store, 4)
    before = store.manifest(2)
    assert open_store(store.folder).publish(2, history[2]) == before
    assert store.versions() == [0, 1, 2, 3]


def test_publishing_other_content_replaces_the_version_and_drops_the_later_ones(store: WeightPublisher) -> None:
    history = publish_versions(store, 6)
    other = next_version(history[1], 99)
    resumed = open_store(store.folder)
    manifest = resumed.publish(2, other)
    assert store.versions() == [0, 1, 2]
    assert store.latest() == manifest, "a reader that had the old manifest in its cache sees the new one"
    assert bits(store.load(2)) == bits(other)


def test_a_version_below_the_kept_ones_also_drops_the_later_ones(tmp_path: Path) -> None:
    store = open_store(tmp_path / "weights", keep_versions=3)
    history = publish_versions(store, 12)
    store.publish(5, history[5])
    assert store.versions() == [0, 5]


def test_retired_versions_go_but_nothing_that_a_kept_one_is_built_from(tmp_path: Path) -> None:
    store = open_store(tmp_path / "weights", keep_versions=3)
    history = publish_versions(store, 12)
    assert store.versions() == [0, 8, 9, 10, 11], "9, 10, 11 are kept; they are built from the snapshot of 8"
    assert all(bits(store.load(version)) == bits(history[version]) for version in store.versions())


def publish_adapted(store: WeightPublisher, versions: range) -> list[Tensors]:
    """Version 0, then what adapters make of it; far more of its bytes change than the adapters have."""
    base = base_version()
    store.publish(0, base)
    history: list[Tensors] = [base]
    for version in versions:
        tensors, packed = adapted_version(base, version)
        store.publish(version, tensors, packed=packed)
        history.append(tensors)
    return history


def slightly_adapted(base: Tensors, seed: int) -> tuple[Tensors, Tensors]:
    """(A version whose delta to the base is smaller than the adapters that make it, those adapters)."""
    name, rank = "model.embed_tokens.weight", 8
    rows, columns = base[name].shape
    left, right = np.zeros((rows, rank), "<i2"), np.zeros((rank, columns), "<i2")
    left[0, 0], right[0, 0] = seed, 1 << 14
    adapter = Adapter(left, right, scale=2.0**-14)
    return {**base, name: merge(base[name], adapter)}, pack({name: adapter})


def test_adapters_are_sent_alone_when_they_are_smaller(store: WeightPublisher) -> None:
    history = publish_adapted(store, range(1, 6))
    for version in range(1, 6):
        manifest = store.manifest(version)
        assert kinds(manifest) == {FileKind.ADAPTERS}, "not even a snapshot at 4, the anchor"
        assert (manifest.parent_version, manifest.parent_digest) == (0, store.manifest(0).digest)
    reader = WeightReader(store.folder, store.run_id)
    assert [bits(reader.load(version)) for version in range(6)] == [bits(tensors) for tensors in history]


def test_the_delta_is_sent_when_it_is_smaller(store: WeightPublisher) -> None:
    base = base_version()
    store.publish(0, base)
    tensors, packed = slightly_adapted(base, 1)
    assert kinds(store.publish(1, tensors, packed=packed)) == {FileKind.DELTA}
    assert bits(WeightReader(store.folder, store.run_id).load(1)) == bits(tensors)


def test_the_first_choice_holds_until_the_process_ends(store: WeightPublisher) -> None:
    """Either way, whatever the later sizes are; the next process chooses anew."""
    base = publish_adapted(store, range(1, 2))[0]
    small, large = slightly_adapted(base, 2), adapted_version(base, 3)
    assert kinds(store.publish(2, small[0], packed=small[1])) == {FileKind.ADAPTERS}
    assert kinds(store.publish(3, large[0], packed=large[1])) == {FileKind.ADAPTERS}
    store.retract_after(0)
    resumed = open_store(store.folder)
    assert kinds(resumed.publish(1, small[0], packed=small[1])) == {FileKind.DELTA}
    assert FileKind.DELTA in kinds(resumed.publish(2, large[0], packed=large[1]))
    assert bits(WeightReader(store.folder, store.run_id).load(2)) == bits(large[0])


def test_a_version_without_a_parent_for_a_delta_decides_nothing(store: WeightPublisher) -> None:
    base = publish_adapted(store, range(2, 3))[0]
    assert kinds(store.manifest(2)) == {FileKind.ADAPTERS}, "version 1 is not there"
    store.publish(3, base)
    tensors, packed = slightly_adapted(base, 4)
    assert FileKind.DELTA in kinds(store.publish(4, tensors, packed=packed))


def test_what_adapters_change_is_never_retired(tmp_path: Path) -> None:
    store = open_store(tmp_path / "weights", keep_versions=3)
    history = publish_adapted(store, range(1, 12))
    assert store.versions() == [0, 9, 10, 11]
    assert all(bits(store.load(version)) == bits(history[version]) for version in store.versions())


def test_deltas_and_adapters_follow_each_other(tmp_path: Path) -> None:
    store = open_store(tmp_path / "weights", keep_versions=3)
    history = publish_adapted(store, range(1, 6))
    store.publish(6, adapted_version(history[0], 6)[0])
    assert kinds(store.manifest(6)) == {FileKind.DELTA}
    tensors, packed = adapted_version(history[0], 7)
    assert kinds(store.publish(7, tensors, packed=packed)) == {FileKind.ADAPTERS}
    assert store.versions() == [0, 5, 6, 7]
    assert bits(WeightReader(store.folder, store.run_id).load(6)) == bits(adapted_version(history[0], 6)[0])


def test_adapters_that_make_another_version_are_not_sent(store: WeightPublisher) -> None:
    """Neither of the layers that they change, nor of the others."""
    base = publish_adapted(store, range(1, 2))[0]
    tensors, _ = adapted_version(base, 2)
    _, packed = adapted_version(base, 3)
    assert kinds(store.publish(2, tensors, packed=packed)) == {FileKind.DELTA}
    tensors, packed = adapted_version(base, 4)
    tensors["model.layers.0.norm.weight"] = tensor("F32", (16,), seed=9)
    assert kinds(store.publish(3, tensors, packed=packed)) == {FileKind.DELTA}
    assert bits(WeightReader(store.folder, store.run_id).load(3)) == bits(tensors)


def test_adapters_need_their_base(store: WeightPublisher) -> None:
    tensors, packed = adapted_version(base_version(), 1)
    assert kinds(store.publish(5, tensors, packed=packed)) == {FileKind.SNAPSHOT}


# -- by changes --------------------------------------------------------------------------------------------------------


def test_versions_published_by_their_changes_are_those_published_whole(store: WeightPublisher, tmp_path: Path) -> None:
    whole = open_store(tmp_path / "whole")
    history = publish_versions(whole, 6)
    store.publish(0, history[0])
    for version in range(1, 6):
        store.publish_changes(version, flips_between(history[version - 1], history[version]))
    for version in range(6):
        ours, theirs = store.manifest(version), whole.manifest(version)
        assert (ours.digest, ours.tensors, ours.parent_digest) == (theirs.digest, theirs.tensors, theirs.parent_digest)
        assert [(file.name, file.digest) for file in ours.files] == [(file.name, file.digest) for file in theirs.files]
        assert bits(store.load(version)) == bits(history[version])


def test_changes_that_would_not_be_smaller_become_a_snapshot(store: WeightPublisher) -> None:
    store.publish(0, first_version(0))
    manifest = store.publish_changes(1, flips_between(first_version(0), first_version(100)))
    assert kinds(manifest) == {FileKind.SNAPSHOT}
    assert manifest.parent_version is None
    assert bits(store.load(1)) == bits(first_version(100))


def test_publishing_the_same_changes_again_changes_nothing(store: WeightPublisher) -> None:
    first, second = first_version(), next_version(first_version(), 1)
    store.publish(0, first)
    store.publish(1, second)
    again = open_store(store.folder)
    again.publish(0, first)
    before = store.manifest(1)
    assert again.publish_changes(1, flips_between(first, second)) == before
    assert store.versions() == [0, 1]
    assert not list(store.folder.glob(".partial-*"))


def test_other_changes_replace_the_version_and_drop_the_later_ones(store: WeightPublisher) -> None:
    history = publish_versions(store, 4)
    again = open_store(store.folder)
    again.publish(0, history[0])
    other = next_version(history[0], 99)
    again.publish_changes(1, flips_between(history[0], other))
    assert store.versions() == [0, 1]
    assert bits(store.load(1)) == bits(other)


def test_changes_of_another_version_than_the_stored_one_are_refused(store: WeightPublisher) -> None:
    history = publish_versions(store, 2)
    with pytest.raises(WeightError, match="publish it whole"):
        open_store(store.folder).publish_changes(2, flips_between(history[1], next_version(history[1], 2)))
    rival = open_store(store.folder)
    rival.publish(1, next_version(history[0], 50))
    with pytest.raises(WeightError, match="was compared with"):
        store.publish_changes(2, flips_between(history[1], next_version(history[1], 2)))


def test_a_large_model_on_a_fast_line_is_coded_plainly(store: WeightPublisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "QUICK_S", 0.0)
    history = [first_version()]
    store.publish(0, history[0])
    for version, line in ((1, None), (2, 1e9), (3, 1.0)):
        history.append(next_version(history[-1], version))
        flips = flips_between(history[-2], history[-1])
        store.publish_changes(version, flips, line_bytes_per_s=line)
        delta = store.file_path(version, "delta.bin").read_bytes()
        assert delta.startswith(plain.MAGIC) is (line != 1.0)
        assert bits(store.load(version)) == bits(history[-1])


def test_a_version_whose_parent_was_dropped_is_a_snapshot(store: WeightPublisher) -> None:
    history = publish_versions(store, 3)
    store.drop(2)
    after = next_version(history[2], 3)
    assert kinds(store.publish_changes(3, flips_between(history[2], after))) == {FileKind.SNAPSHOT}
    assert bits(store.load(3)) == bits(after)


@pytest.mark.parametrize("own_process", [False, True])
def test_what_was_published_by_changes_is_still_held(
    store: WeightPublisher, own_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged version is made again from what is held."""
    if own_process:
        monkeypatch.setattr(publisher, "OWN_PROCESS_BYTES", 0)
    first, second = first_version(), next_version(first_version(), 1)
    store.publish(0, first)
    manifest = store.publish_changes(1, flips_between(first, second))
    held = store.held()
    assert held is not None
    assert held[0] == manifest
    assert bits(held[1]) == bits(second)
    assert store.restore(1, held[1]).digest == manifest.digest
    assert not list(store.folder.glob(".partial-*"))
    store.close()
