"""Finds the files of a data set: one file, a glob, a folder of shards, what save_to_disk wrote, or the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from learner.data.readers.formats import FORMATS, format_of, read_file
from learner.data.readers.rows import Row
from learner.data.readers.source import is_glob, matching_files
from learner.data.readers.text import COMPRESSIONS, whole_text
from services.errors import DataError

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*)?")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> words in the name of a file or folder that say it belongs to it."""
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json")


def read_rows(path: str, split: str) -> Iterator[Row]:
    """The rows of what the path names, shard by shard in the order of their names."""
    files = local_files(path, split)
    if files is not None:
        for file in files:
            yield from read_file(file)
    else:
        yield from _loaded_by_datasets(path, split)


def is_local(path: str) -> bool:
    """Whether the path is a place on this machine, whether it exists or not; else it is an id on the hub."""
    there = _place(path)
    return there.exists() or is_glob(path) or format_of(there) is not None or not HUB_ID.fullmatch(path)


def local_files(path: str, split: str) -> list[Path] | None:
    """The files with the rows; None for what only the datasets library loads. DataError when there is no such place."""
    there = _place(path)
    if is_glob(path):
        found = matching_files(there)
        if not found:
            raise DataError(f"no file matches {path} (looked in {Path.cwd()})", hint="check data.path")
        return found
    if there.is_dir():
        return _files_of_folder(there, split)
    if there.is_file():
        return [there]
    if is_local(path):
        _refuse(path, there)
    return None


def _place(path: str) -> Path:
    """The path, once it is known that a file could have that name."""
    if not path.strip():
        raise DataError("no prompts are named", hint="set data.path to a file or a Hugging Face data set id")
    try:
        place = Path(path).expanduser()
        place.stat()
    except FileNotFoundError:
        return place
    except (OSError, ValueError, RuntimeError) as error:  # too long, not to be entered, a NUL, no such home
        raise DataError(
            f"{path!r:.80} cannot be read: {error!s:.200}", hint="set data.path to a file or a Hugging Face data set id"
        ) from error
    return place


def _refuse(path: str, there: Path) -> None:
    if format_of(there) is not None:
        raise DataError(f"{path} does not exist (looked in {Path.cwd()})", hint="check data.path")
    raise DataError(
        f"{path} is neither a file nor a folder, and no Hugging Face id",
        hint=f"accepted are {', '.join(FORMATS)} files, also with {', '.join(COMPRESSIONS)}, folders and globs of "
        "them, and ids like openai/gsm8k:main",
    )


def _files_of_folder(folder: Path, split: str) -> list[Path] | None:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if (path / "state.json").is_file())
        if split not in splits:
            raise DataError(f"{folder} has no split {split!r}, it has {splits}", hint="set data.split to one of them")
        return _saved_files(folder / split)
    if (folder / "state.json").is_file():
        return _saved_files(folder)
    if _declares_configurations(folder):
        return None
    return _shards(folder, split)


def _saved_files(folder: Path) -> list[Path]:
    """The files that save_to_disk wrote, in the order of its state.json."""
    state_file = folder / "state.json"
    try:
        state = json.loads(whole_text(state_file))
        files = [folder / str(entry["filename"]) for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{state_file} does not name the data files: {type(error).__name__}: {error}",
            hint="save the data set again",
        ) from error
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(f"{folder} is a selection of rows", hint="save it again with a present version of datasets")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{missing[0]} does not exist, {state_file} names it", hint="save the data set again")
    return files


def _declares_configurations(folder: Path) -> bool:
    """A clone of a hub data set whose README says which files make which configuration."""
    readme = folder / "README.md"
    return readme.is_file() and bool(re.search(r"^(configs|data_files):", whole_text(readme), re.MULTILINE))


def _shards(folder: Path, split: str) -> list[Path]:
    """All data files below the folder; those of the split where names say which split a file belongs to."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if format_of(path) is not None
        and path.name not in METADATA
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not files:
        raise DataError(f"{folder} holds no {', '.join(FORMATS)} file", hint="set data.path to a folder with data")
    by_split = {file: _split_of(file.relative_to(folder)) for file in files}
    named = {found for found in by_split.values() if found is not None}
    if named:
        wanted = next((name for name, words in SPLITS.items() if split in words), split)
        files = [file for file in files if by_split[file] == wanted]
        if not files:
            raise DataError(
                f"{folder} has no files of split {split!r}, it has those of {sorted(named)}",
                hint="set data.split to one of them",
            )
    formats = {format_of(file) for file in files}
    if len(formats) > 1:
        raise DataError(
            f"{folder} holds files of several kinds: {', '.join(sorted(map(str, formats)))}",
            hint="name those of one kind with a glob, such as folder/*.parquet",
        )
    return files


def _split_of(path: Path) -> str | None:
    """The split that the name of the file, or else of a folder above it, says."""
    for part in reversed(path.parts):
        words = set(re.split(r"[^a-z]+", part.lower()))
        found = next((split for split, known in SPLITS.items() if words & set(known)), None)
        if found is not None:
            return found
    return None


def _loaded_by_datasets(path: str, split: str) -> Iterator[Row]:
    import datasets

    name, _, configuration = path.partition(":")
    try:
        loaded: Sequence[Any] = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:  # its own, httpx's, pyarrow's and the system's errors all mean the same here
        raise DataError(
            f"data set {path}, split {split!r}, cannot be loaded: {error}",
            hint="check the id, the split and the network; one with several configurations is named id:configuration",
        ) from error
    for number, record in enumerate(loaded):
        yield Row(f"{path} row {number}", record)
