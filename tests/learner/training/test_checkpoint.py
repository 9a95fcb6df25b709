"""A checkpoint is whole or does not count, and only intact bytes of this run are resumed from."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from learner.parallel.file_tensors import FileTensor
from learner.training.checkpoint import Checkpoint, Checkpoints, SavedTensor
from services.errors import CheckpointError
from services.streams.fence import Fence
from services.tensors import digest_file, read_header
from tests.support.disk_order import disk_order

STATE, META = "state-00000.safetensors", "meta.json"


def state(value: float) -> dict[str, torch.Tensor]:
    return {"weights": torch.full((4, 3), value), "steps": torch.tensor(7), "scalar": torch.tensor(0.5)}


def loaded(checkpoints: Checkpoints) -> Checkpoint:
    found = checkpoints.load()
    assert found is not None
    return found


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "run", keep=2).save(3, state(1.5))
    found = loaded(Checkpoints(tmp_path, "run", keep=2))
    assert (found.run_id, found.weight_version) == ("run", 3)
    assert found.tensors.keys() == state(0).keys()
    assert all(torch.equal(found.tensors[name][...], tensor) for name, tensor in state(1.5).items())


def test_what_is_written_beside_the_training_is_what_there_was_and_counts_when_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one byte is written before the training has changed every weight in place."""
    trained, save_file = threading.Event(), safetensors.torch.save_file

    def save_later(*arguments: Any, **options: Any) -> None:
        assert trained.wait(30)
        save_file(*arguments, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", save_later)
    checkpoints = Checkpoints(tmp_path, "run", keep=2, async_write=True)
    tensors = state(1.0)
    checkpoints.begin(3, tensors)
    for tensor in tensors.values():
        tensor.fill_(9)
    assert checkpoints.begun == 3
    assert not list(tmp_path.glob("v*"))
    trained.set()
    assert checkpoints.commit().name == "v000003"
    assert [checkpoints.begun] == [None]
    found = loaded(checkpoints).tensors
    assert torch.equal(found["weights"][1:3], state(1.0)["weights"][1:3])
    assert all(torch.equal(found[name][...], tensor) for name, tensor in state(1.0).items())


def test_rows_that_no_file_holds_are_missed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=2)
    checkpoints.save(1, state(1.0))
    saved = loaded(checkpoints).tensors["weights"]
    assert isinstance(saved, SavedTensor)
    saved.shape = (6, 3)
    with pytest.raises(CheckpointError, match="rows 0 to 6 are not all in the checkpoint, only 4"):
        saved[...]


def test_rows_come_from_whichever_files_hold_them_in_whatever_order_those_were_added(tmp_path: Path) -> None:
    whole = torch.arange(21).reshape(7, 3).to(torch.int32)
    saved = SavedTensor()
    for first, last in ((5, 7), (0, 2), (2, 5)):
        path = tmp_path / f"{first}.safetensors"
        safetensors.torch.save_file({"t": whole[first:last].contiguous()}, path)
        saved.add(first, 7, FileTensor(path, read_header(path).places["t"]))
    assert (saved.shape, saved.dtype) == ((7, 3), "I32")
    assert torch.equal(saved[...], whole)
    for start in range(8):
        for stop in range(start, 8):
            assert torch.equal(saved[start:stop], whole[start:stop])


def test_a_new_run_has_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, "run", keep=2).load() is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=2)
    for version in (1, 2, 3, 11):
        checkpoints.save(version, state(version))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v000003", "v000011"]


def test_a_copy_that_a_person_made_is_no_checkpoint_and_takes_no_place(tmp_path: Path) -> None:
    """It is kept, too: whoever made it knows what for."""
    checkpoints = Checkpoints(tmp_path, "run", keep=1)
    shutil.copytree(checkpoints.save(1, state(1)), tmp_path / "v000009.bak")
    checkpoints.save(2, state(2))
    assert checkpoints.versions() == [2]
    assert loaded(checkpoints).weight_version == 2
    checkpoints.go_back(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v000002", "v000009.bak"]


def test_the_newest_is_the_one_with_the_highest_number_however_long(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=2)
    for version in (2, 999_999, 1_000_000):
        checkpoints.save(version, state(version))
    assert checkpoints.versions() == [999_999, 1_000_000]
    assert loaded(checkpoints).weight_version == 1_000_000
    checkpoints.go_back(999_999)
    assert checkpoints.versions() == [999_999]


def test_a_checkpoint_remembers_how_prompts_are_chosen_and_only_as_it_was_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=3)
    checkpoints.save(1, state(1))
    assert loaded(checkpoints).curriculum is None
    chosen = {"planned": [[3, 1], [2]], "seen": {"ä": 0.5}}
    checkpoints.begin(2, state(2), chosen)
    folder = checkpoints.commit()
    assert loaded(checkpoints).curriculum == chosen
    assert checkpoints.go_back(2).curriculum == chosen
    meta = json.loads((folder / META).read_text())
    rewrite(curriculum=meta["curriculum"].replace("0.5", "0.6"))(folder / META)
    assert loaded(checkpoints).weight_version == 1, "another choice would be trained on prompts of its own"
    with pytest.raises(CheckpointError, match="loaded: its choice of prompts has changed since it was written"):
        checkpoints.go_back(2)


def test_a_checkpoint_says_who_wrote_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=1, fence=Fence(7))
    meta = json.loads((checkpoints.save(3, state(1)) / META).read_text())
    assert (meta["run_id"], meta["weight_version"], meta["epoch"]) == ("run", 3, 7)
    assert meta["digests"] == {STATE: digest_file(tmp_path / "v000003" / STATE)}


@pytest.mark.parametrize("async_write", [False, True])
def test_a_disk_that_fills_up_while_tensors_are_written_is_named_with_what_was_wanted(
    async_write: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device")

    checkpoints = Checkpoints(tmp_path, "run", keep=1, async_write=async_write)
    checkpoints.save(1, state(1))
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(CheckpointError) as refused:
        checkpoints.save(2, state(2))
    wanted = sum(tensor.numel() * tensor.element_size() for tensor in state(2).values())
    assert refused.value.message == (
        f"the checkpoint of {wanted} bytes cannot be written to {tmp_path}: I/O error: No space left on device"
    )
    assert "free some space" in refused.value.hint
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["v000001"], "nothing half-written is left"
    checkpoints.save(2, state(2))
    assert loaded(checkpoints).weight_version == 2


def test_what_happens_before_the_commit_comes_first(tmp_path: Path) -> None:
    """A learner that dies in between resumes from the checkpoint before and does it again."""
    checkpoints = Checkpoints(tmp_path, "run", keep=2)
    checkpoints.save(1, state(1))

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, state(2), before_commit=die)
    assert [path.name for path in tmp_path.iterdir()] == ["v000001"], "nothing half-written is left"
    assert loaded(Checkpoints(tmp_path, "run", keep=2)).weight_version == 1


@pytest.mark.parametrize("async_write", [False, True])
def test_a_checkpoint_is_durable_before_it_counts_and_counts_before_older_ones_go(
    async_write: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=1, async_write=async_write)
    checkpoints.save(1, state(1))
    with disk_order(monkeypatch) as order:
        checkpoints.save(2, state(2))
    assert order.finished() == []
    changes = [(verb, Path(path).name) for verb, path in order.steps if verb != "fsync"]
    assert changes == [("name", "v000002"), ("delete", "v000001")]
    fsynced = {Path(path).name for verb, path in order.steps if verb == "fsync"}
    assert {STATE, META, tmp_path.name} <= fsynced


def test_going_back_drops_what_came_later(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=3)
    with pytest.raises(CheckpointError, match="no checkpoint of version 5") as refused:
        checkpoints.go_back(5)
    assert refused.value.hint == "there are: none"
    for version in (1, 2, 11):
        checkpoints.save(version, state(version))
    with pytest.raises(CheckpointError, match="no checkpoint of version 5") as refused:
        checkpoints.go_back(5)
    assert refused.value.hint == "there are: v000011, v000002, v000001"
    assert checkpoints.go_back(2).weight_version == loaded(checkpoints).weight_version == 2


def test_going_back_drops_the_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a learner that dies over it resumes from a checkpoint that has all before it."""
    checkpoints = Checkpoints(tmp_path, "run", keep=5)
    for version in range(1, 5):
        checkpoints.save(version, state(version))
    with disk_order(monkeypatch) as order:
        checkpoints.go_back(1)
    assert [Path(path).name for verb, path in order.steps if verb == "delete"] == ["v000004", "v000003", "v000002"]


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: flip(path)], ids=["empty", "flip"])
def test_a_rotten_checkpoint_is_not_gone_back_to(damage: Callable[[Path], object], tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=3)
    for version in (1, 2):
        checkpoints.save(version, state(version))
    damage(tmp_path / "v000001" / STATE)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        checkpoints.go_back(1)
    assert loaded(checkpoints).weight_version == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"run_id": "another"}, "it belongs to run another, this is run"),
        ({"weight_version": 9}, "it says that it is version 9"),
        ({"digests": {"other.safetensors": "0" * 64}}, "it names other.safetensors, which is no state file's name"),
        ({"digests": {STATE: "0" * 64}}, f"{STATE} has changed since it was written"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_named(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=3)
    rewrite(**changes)(checkpoints.save(1, state(1)) / META)
    with pytest.raises(CheckpointError, match=f"the checkpoint of version 1 cannot be loaded: {says}"):
        checkpoints.go_back(1)
    assert checkpoints.versions() == [1]


def test_version_0_has_a_checkpoint_like_any_other(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=1)
    checkpoints.save(0, state(0))
    assert loaded(checkpoints).weight_version == 0
    assert checkpoints.go_back(0).weight_version == 0


def test_the_files_of_all_ranks_are_read_and_checked(tmp_path: Path) -> None:
    """As two ranks leave them: each has rows of its own, and the digest of each is in meta.json."""
    checkpoints = Checkpoints(tmp_path, "run", keep=2)
    folder = checkpoints.save(1, {"weights": torch.full((4, 3), 1.0)})
    (folder / "state-00001.safetensors").write_bytes((folder / STATE).read_bytes())
    meta = json.loads((folder / META).read_text())
    for number, name in enumerate([STATE, "state-00001.safetensors"]):
        part = {"weights": torch.full((2, 3), float(number))}
        safetensors.torch.save_file(part, folder / name, {"rows": json.dumps({"weights": [2 * number, 4]})})
        meta["digests"][name] = digest_file(folder / name)
    (folder / META).write_text(json.dumps(meta))
    weights = loaded(checkpoints).tensors["weights"]
    assert weights.shape == (4, 3)
    assert weights[...].mean(1).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert weights[1:3].mean(1).tolist() == [0.0, 1.0]
    flip(folder / "state-00001.safetensors")
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        checkpoints.load()


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    partial = tmp_path / ".partial-abc"
    partial.mkdir()
    (partial / STATE).write_bytes(b"half")
    assert Checkpoints(tmp_path, "run", keep=2).load() is None
    assert not partial.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def rewrite(**changes: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


DAMAGES: list[tuple[str, Callable[[Path], object]]] = [
    (STATE, cut),
    (STATE, flip),
    (STATE, Path.unlink),
    (META, cut),
    (META, Path.unlink),
    (META, lambda path: path.write_text("[]")),
    (META, lambda path: path.write_bytes(b"\xff\xfe")),
    (META, rewrite(run_id="another run")),
    (META, rewrite(weight_version=9)),
    (META, rewrite(weight_version="nine")),
    (META, rewrite(digests={STATE: "0" * 64})),
    (META, rewrite(digests={"other.safetensors": "0" * 64})),
]


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_a_damaged_one_gives_way_to_the_one_before(
    file: str, damage: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=2)
    checkpoints.save(1, state(1))
    damage(checkpoints.save(2, state(2)) / file)
    assert loaded(checkpoints).weight_version == 1
    assert "checkpoint_unusable" in capsys.readouterr().out


def test_none_that_can_be_trusted_is_an_error_and_not_a_new_run(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=2)
    for version in (1, 2):
        flip(checkpoints.save(version, state(version)) / STATE)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        checkpoints.load()


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", keep=1)
    checkpoints.save(1, state(1))

    def fill() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(Exception, match=r"cannot write.*No space left"):
        checkpoints.save(2, state(2), before_commit=fill)
    assert loaded(checkpoints).weight_version == 1
    assert len(list(tmp_path.iterdir())) == 1
