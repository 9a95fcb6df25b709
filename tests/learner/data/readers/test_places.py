"""Where the files of a data set are: globs, folders of shards, and what save_to_disk wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from learner.data.readers.places import is_local, read_rows
from services.errors import DataError


def shard(folder: Path, name: str, *numbers: int) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"n": number}) + "\n" for number in numbers))


def numbers(path: Path | str, split: str = "train") -> list[Any]:
    return [row.record["n"] for row in read_rows(str(path), split)]


def test_shards_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, number in (("part-2.jsonl", 2), ("part-0.jsonl", 0), ("part-1.jsonl", 1)):
        shard(tmp_path, name, number)
    shard(tmp_path, ".hidden.jsonl", 9)
    (tmp_path / "notes.txt").write_text("not data")
    assert numbers(tmp_path) == [0, 1, 2]
    assert numbers(tmp_path / "part-[12].jsonl") == [1, 2]
    assert numbers(tmp_path / "**" / "part-?.jsonl") == [0, 1, 2]


def test_names_say_which_split_a_file_belongs_to(tmp_path: Path) -> None:
    shard(tmp_path, "data/train-00000-of-00002.jsonl", 0)
    shard(tmp_path, "data/train-00001-of-00002.jsonl", 1)
    shard(tmp_path, "data/test-00000-of-00001.jsonl", 2)
    shard(tmp_path, "dev/a.jsonl", 3)
    assert numbers(tmp_path) == [0, 1]
    assert numbers(tmp_path, "test") == [2]
    assert numbers(tmp_path, "validation") == [3]
    with pytest.raises(DataError, match=r"of split 'other', it has those of \['test', 'train', 'validation'\]"):
        numbers(tmp_path, "other")


def test_a_folder_that_names_no_split_serves_every_split(tmp_path: Path) -> None:
    shard(tmp_path, "latest.jsonl", 1)  # "test" in a word says nothing
    assert numbers(tmp_path, "test") == numbers(tmp_path, "train") == [1]


def test_what_save_to_disk_wrote_is_read_in_the_order_of_its_state(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"n": list(range(25))})
    rows.select([4, 2, 0]).save_to_disk(tmp_path / "selected")
    rows.save_to_disk(tmp_path / "sharded", num_shards=12)
    datasets.DatasetDict({"train": rows.select(range(2)), "test": rows.select(range(2, 4))}).save_to_disk(
        tmp_path / "dict"
    )
    assert numbers(tmp_path / "selected", "any") == [4, 2, 0]
    assert numbers(tmp_path / "sharded") == list(range(25))
    assert numbers(tmp_path / "dict", "test") == [2, 3]
    with pytest.raises(DataError, match=r"no split 'dev', it has \['test', 'train'\]"):
        numbers(tmp_path / "dict", "dev")


@pytest.mark.parametrize("content", ["{", "[]", '{"_data_files": [{"filename": "none.arrow"}]}', '{"_data_files": 3}'])
def test_a_broken_saved_data_set_is_refused_by_its_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(DataError, match=r"state\.json"):
        numbers(tmp_path)


def test_a_clone_of_a_hub_data_set_is_read_as_its_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shard(tmp_path, "main/train.jsonl", 1)
    shard(tmp_path, "socratic/train.jsonl", 2)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files: main/train.jsonl\n  default: true\n"
        "- config_name: socratic\n  data_files: socratic/train.jsonl\n---\n"
    )
    assert numbers(tmp_path) == [1]


def test_a_folder_of_several_formats_is_refused(tmp_path: Path) -> None:
    shard(tmp_path, "a.jsonl", 1)
    (tmp_path / "a.csv").write_text("n\n1\n")
    with pytest.raises(DataError, match=r"several kinds: \.csv, \.jsonl") as caught:
        numbers(tmp_path)
    assert "glob" in caught.value.hint


@pytest.mark.parametrize(
    "path", ["none.jsonl", "./none", "none/*.jsonl", "/none/at/all", "a\0b", "x" * 5000, "~nobody-of-this-name/a", " "]
)
def test_a_place_that_does_not_exist_is_refused(path: str) -> None:
    with pytest.raises(DataError) as caught:
        numbers(path)
    assert caught.value.hint


def test_an_id_on_the_hub_is_no_local_place() -> None:
    assert not is_local("openai/gsm8k:main")
    assert not is_local("squad")
    assert is_local("./squad")
    assert is_local("openai/gsm8k.jsonl")
