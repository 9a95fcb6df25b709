"""Hosts that share no folder: rank 0 alone writes and reads, and every rank gets what was saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from learner.parallel.file_tensors import FileTensor
from learner.parallel.ranks import Ranks
from learner.training.checkpoint import ROWS, Checkpoints, SavedTensor
from learner.training.gathered_state import SentTensor, send_index, write_gathered
from services.errors import ContractError, UnavailableError
from services.tensors import digest_file, read_header
from tests.support.threaded_ranks import on_ranks


def state(value: float) -> dict[str, torch.Tensor]:
    return {
        "weights": torch.arange(12, dtype=torch.float32).reshape(4, 3) + value,
        "half": torch.full((2, 2), value, dtype=torch.bfloat16),
        "steps": torch.tensor(7),
        "none": torch.empty(0, 3),
    }


def test_the_file_is_that_of_a_learner_of_one_rank(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    digests = on_ranks(lambda ranks: write_gathered(state(1), path, {"a": "b"}, ranks), 2, nodes=2)
    assert digests == [digest_file(path), ""]
    assert read_header(path).metadata == {"a": "b"}
    found = safetensors.torch.load_file(path)
    assert found.keys() == state(1).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state(1).items())


def saved_in(path: Path, value: float) -> dict[str, FileTensor]:
    """The state as rank 0 finds it in a file."""
    safetensors.torch.save_file(state(value), path)
    return {name: FileTensor(path, place) for name, place in read_header(path).places.items()}


def test_every_rank_reads_what_rank_0_has(tmp_path: Path) -> None:
    def read(ranks: Ranks) -> dict[str, torch.Tensor]:
        sent = send_index(saved_in(tmp_path / "state", 2) if ranks.is_leader else None, ranks)
        assert (sent["half"].dtype, sent["half"].shape) == ("BF16", (2, 2))
        return {name: tensor[...] for name, tensor in sorted(sent.items())} | {"rows": sent["weights"][1:3]}

    for found in on_ranks(read, 3):
        assert torch.equal(found.pop("rows"), state(2)["weights"][1:3])
        assert found.keys() == state(2).keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state(2).items())


def test_ranks_that_ask_for_different_tensors_are_told_so(tmp_path: Path) -> None:
    def read(ranks: Ranks) -> torch.Tensor:
        sent = send_index(saved_in(tmp_path / "state", 2) if ranks.is_leader else None, ranks)
        return sent["weights" if ranks.is_leader else "half"][...]

    with pytest.raises(ContractError, match=r"rank 1 asks for tensor \d, rank 0 for \d"):
        on_ranks(read, 2)


@pytest.mark.parametrize("shared", [True, False])
def test_ranks_write_for_themselves_only_where_all_see_the_folder(
    shared: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def save_and_load(ranks: Ranks) -> tuple[list[str], dict[str, torch.Tensor]]:
        folder = tmp_path / "new" / ("one" if shared else f"of-{ranks.rank}")
        checkpoints = Checkpoints(folder, "run", keep=2, ranks=ranks)
        assert list(folder.iterdir()) == [] or not ranks.is_leader, "what was looked for is gone again"
        checkpoints.save(3, state(3))
        found = checkpoints.load()
        assert found is not None
        assert (found.run_id, found.weight_version) == ("run", 3)
        assert {type(tensor) for tensor in found.tensors.values()} == {SavedTensor if shared else SentTensor}
        loaded = {name: tensor[...] for name, tensor in sorted(found.tensors.items())}
        return sorted(path.name for path in folder.rglob("*") if path.is_file()), loaded

    first, second = on_ranks(save_and_load, 2, nodes=2)
    files = ["meta.json", "state-00000.safetensors"]
    if shared:
        files.append("state-00001.safetensors")
    assert (first[0], second[0]) == (files, files if shared else [])
    for _, loaded in (first, second):
        assert loaded.keys() == state(3).keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state(3).items())
    said = capsys.readouterr().out
    assert ("written_by=every rank" if shared else "written_by=rank 0") in said.replace("'", "")
    meta = json.loads(next(tmp_path.rglob("meta.json")).read_text())
    assert list(meta["digests"]) == files[1:]


def test_with_a_whole_model_on_each_host_the_first_ones_folder_is_enough_to_write(tmp_path: Path) -> None:
    """Two hosts of two ranks; both ranks of the first see the folder, and the second has another."""

    def save_and_load(ranks: Ranks) -> dict[str, torch.Tensor]:
        checkpoints = Checkpoints(tmp_path / f"of-{ranks.rank // 2}", "run", keep=2, ranks=ranks)
        checkpoints.save(1, state(1))
        found = checkpoints.load()
        assert found is not None
        return {name: tensor[...] for name, tensor in sorted(found.tensors.items())}

    for loaded in on_ranks(save_and_load, 4, nodes=2, shard_within_node=True):
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state(1).items())
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == [
        f"of-0/v000001/{name}" for name in ("meta.json", *(f"state-0000{rank}.safetensors" for rank in (0, 1)))
    ]


def test_rank_0_alone_verifies_what_all_of_them_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are large, and each rank reads the rows that it needs."""
    on_ranks(lambda ranks: Checkpoints(tmp_path, "run", 2, ranks).save(1, state(1)), 2)
    verified: list[str] = []

    def counted(path: Path) -> str:
        verified.append(path.name)
        return digest_file(path)

    monkeypatch.setattr("learner.training.checkpoint.digest_file", counted)
    on_ranks(lambda ranks: Checkpoints(tmp_path, "run", 2, ranks).load(), 2)
    assert sorted(verified) == ["state-00000.safetensors", "state-00001.safetensors"]


def test_what_lies_in_the_folder_of_another_host_does_not_matter(tmp_path: Path) -> None:
    """Its checkpoint may be one of before the hosts changed places."""

    def save_and_load(ranks: Ranks) -> int:
        folder = tmp_path / f"of-{ranks.rank}"
        if not ranks.is_leader:
            (folder / "v000009").mkdir(parents=True)
        checkpoints = Checkpoints(folder, "run", keep=2, ranks=ranks)
        checkpoints.save(1, state(1))
        found = checkpoints.load()
        assert found is not None
        assert sum(float(tensor[...].sum()) for _, tensor in sorted(found.tensors.items())) > 0
        return found.weight_version

    assert on_ranks(save_and_load, 2, nodes=2) == [1, 1]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match=rf"cannot write {tmp_path}/file/checkpoints"):
        on_ranks(lambda ranks: Checkpoints(tmp_path / "file" / "checkpoints", "run", 2, ranks), 2, nodes=2)


def test_no_rank_of_a_new_run_finds_a_checkpoint(tmp_path: Path) -> None:
    def load(ranks: Ranks) -> object:
        return Checkpoints(tmp_path / f"of-{ranks.rank}", "run", keep=2, ranks=ranks).load()

    assert on_ranks(load, 2, nodes=2) == [None, None]


def test_the_rows_of_a_file_are_named_whole(tmp_path: Path) -> None:
    on_ranks(lambda ranks: Checkpoints(tmp_path / f"of-{ranks.rank}", "r", 1, ranks).save(1, state(1)), 2, nodes=2)
    rows = json.loads(read_header(tmp_path / "of-0" / "v000001" / "state-00000.safetensors").metadata[ROWS])
    assert rows == {"weights": [0, 4], "half": [0, 2], "steps": [0, 1], "none": [0, 0]}
