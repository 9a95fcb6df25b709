"""Files and folders are complete or absent, also after a power cut, and what cannot be written says why."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from services import durable
from services.errors import UnavailableError
from services.tensors import write_safetensors
from tests.support.disk_order import disk_order
from tests.support.weight_samples import first_version


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    final = tmp_path / "v1"
    with durable.new_folder(final) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), durable.new_folder(final) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (final / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_a_folder_replaces_the_one_before(tmp_path: Path) -> None:
    final = tmp_path / "v1"
    for text in ("old", "new"):
        with durable.new_folder(final) as folder:
            (folder / text).write_text(text)
    assert [path.name for path in final.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_write_file_replaces_and_sets_the_mode(tmp_path: Path) -> None:
    durable.write_file(tmp_path / "secret", "a", mode=0o600)
    durable.write_file(tmp_path / "secret", b"b", mode=0o600)
    assert (tmp_path / "secret").read_bytes() == b"b"
    assert mode_of(tmp_path / "secret") == 0o600
    durable.write_file(tmp_path / "open", "a")
    durable.create_file(tmp_path / "created", "a")
    assert mode_of(tmp_path / "open") == mode_of(tmp_path / "created") == 0o644


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_line_is_kept_as_it_is_but_for_the_end_that_it_gets(tmp_path: Path) -> None:
    for line in ("one", "two\n", "\nthree  ", "XXfour"):
        durable.append_line(tmp_path / "lines", line)
    assert (tmp_path / "lines").read_text() == "one\ntwo\n\nthree  \nXXfour\n"


def test_a_line_cut_short_by_a_crash_stays_apart(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    durable.append_line(path, "one")
    with path.open("a") as file:
        file.write('{"cut')
    durable.append_line(path, "two")
    assert path.read_text().splitlines() == ["one", '{"cut', "two"]


def test_a_full_disk_is_explained_with_its_remedy(tmp_path: Path) -> None:
    with (
        pytest.raises(UnavailableError, match=r"No space left(?s:.*)hint: free some space"),
        durable.explained(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_unwritable_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "below"
    for write in (durable.write_file, durable.create_file, durable.append_line):
        with pytest.raises(UnavailableError, match=rf"cannot write {below}: Not a directory(?s:.*)run\.dir"):
            write(below, "x")


def test_clear_partial_removes_only_leftovers(tmp_path: Path) -> None:
    (tmp_path / f"{durable.TEMPORARY_PREFIX}x").mkdir()
    (tmp_path / f"{durable.TEMPORARY_PREFIX}y").write_text("")
    (tmp_path / "kept").write_text("")
    durable.clear_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_of_several_who_create_a_file_one_does(tmp_path: Path) -> None:
    assert durable.create_file(tmp_path / "run.json", "first")
    assert not durable.create_file(tmp_path / "run.json", "second")
    assert (tmp_path / "run.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def fill(folder: Path) -> None:
    """Two files, one of them in a folder of its own, written as libraries write: without an fsync."""
    (folder / "below").mkdir()
    (folder / "a").write_text("bytes of a")
    (folder / "below" / "b").write_text("bytes of b")


def test_bytes_are_durable_before_they_get_their_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disk_order(monkeypatch) as order:
        for name in ("first", "again"):
            durable.write_file(tmp_path / "file", name)
        durable.create_file(tmp_path / "once", "x")
        write_safetensors(tmp_path / "tensors", first_version())
        with durable.new_folder(tmp_path / "folder") as folder:
            fill(folder)
    assert order.finished() == []
    named = [Path(path).name for verb, path in order.steps if verb == "name"]
    assert named == ["file", "file", "once", "tensors", "folder"]
    written = [Path(path) for verb, path in order.steps if verb == "fsync" and Path(path) != tmp_path]
    beside = [path.relative_to(tmp_path).parts[0] for path in written]
    assert all(name.startswith(durable.TEMPORARY_PREFIX) for name in beside), "on the same disk, to be cleared"


def test_what_a_new_folder_replaces_goes_when_the_new_name_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with durable.new_folder(tmp_path / "v1") as folder:
        fill(folder)
    with disk_order(monkeypatch) as order, durable.new_folder(tmp_path / "v1") as folder:
        fill(folder)
    assert order.finished() == []
    assert [verb for verb, _ in order.steps][-4:] == ["away", "name", "fsync", "delete"]


def test_an_appended_line_is_durable_and_so_is_the_name_of_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    with disk_order(monkeypatch) as order:
        for line in ("one", "two"):
            durable.append_line(path, line)
    fsynced = [fsynced for verb, fsynced in order.steps if verb == "fsync"]
    assert fsynced == [str(path), str(tmp_path), str(path)]
    assert path.read_text() == "one\ntwo\n"


def test_a_shared_lock_is_had_by_many_and_an_exclusive_one_by_one(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open() as second:
        assert durable.try_lock(first.fileno(), shared=True)
        assert durable.try_lock(second.fileno(), shared=True)
        assert not durable.try_lock(first.fileno())
        durable.unlock(second.fileno())
        assert durable.try_lock(first.fileno())
        assert not durable.try_lock(second.fileno(), shared=True)


def test_another_name_of_a_file_is_a_copy_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("a")
    for name in ("b", "c"):
        (tmp_path / name).write_text("old")
    durable.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")

    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    durable.link_or_copy(tmp_path / "a", tmp_path / "c")
    assert not (tmp_path / "c").samefile(tmp_path / "a")
    assert (tmp_path / "c").read_text() == "a"
