"""Reads problems (a conversation to answer, and the reference answer where there is one) from files and the hub.

Knows nothing of tokens, models or what the problems are used for: training prompts and benchmarks both come from here.

Accepted rows, by their columns:

    prompt = [{role, content}, ...], reward_model = {ground_truth}     verl
    question, answer                                                   GSM8K ("... #### 72") and plain ones
    problem, answer and/or solution                                    the answer, else the solution's last box
    prompt, completion                                                 plain text

The answer may be missing: self-training needs none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from learner.data.answers import final_answer
from services.errors import DataError

Row = Mapping[str, Any]
Message = dict[str, str]

FILE_SUFFIXES = (".jsonl", ".json", ".parquet")
ACCEPTED = (
    "a row has `prompt` (chat messages or text), `question` or `problem`, and for its answer "
    "`reward_model.ground_truth`, `answer`, `solution`, `completion` or nothing"
)
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a data set."""

    index: int
    """Row in the data set, from 0."""
    messages: tuple[Message, ...]
    """The conversation so far, as {"role", "content"}; the last message is the user's."""
    answer: str | None
    """The reference answer as text, where the row has one."""

    @property
    def question(self) -> str:
        return self.messages[-1]["content"]


def read_problems(path: str, *, split: str = "train", limit: int | None = None) -> list[Problem]:
    """The first `limit` problems of a file, a folder or a hub data set; DataError when there are none.

    read_problems("train.jsonl")                        .jsonl, .json (a list of objects) or .parquet
    read_problems("folder/", split="test")              a folder that datasets.load_dataset understands
    read_problems("openai/gsm8k:main", split="test")    a hub id, with :configuration where it has several
    """
    rows = islice(_rows(path, split), limit)
    problems = [_problem(index, row, path) for index, row in enumerate(rows)]
    if not problems:
        raise DataError(f"{path} holds no rows", hint=f"name a data set with prompts: {ACCEPTED}")
    return problems


def _rows(path: str, split: str) -> Iterator[Row]:
    if not path:
        raise DataError("no prompts are named", hint="set data.path to a file or a Hugging Face data set id")
    file = Path(path).expanduser()
    if file.suffix in FILE_SUFFIXES or file.is_file():
        return _file_rows(file)
    if file.is_dir() or _HUB_ID.fullmatch(path):
        return _hub_rows(path, split)
    raise DataError(
        f"{path} is neither a file nor a folder, and no Hugging Face id",
        hint=f"accepted are {', '.join(FILE_SUFFIXES)} files, folders, and ids like openai/gsm8k:main",
    )


def _file_rows(file: Path) -> Iterator[Row]:
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    if file.suffix not in readers:
        raise DataError(
            f"{file} has the suffix {file.suffix!r}",
            hint=f"accepted are {', '.join(FILE_SUFFIXES)}: convert or rename it",
        )
    if not file.is_file():
        raise DataError(f"{file} does not exist (looked in {Path.cwd()})", hint="check data.path")
    try:
        yield from readers[file.suffix](file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}", hint="check that the file is whole and readable") from error


def _jsonl_rows(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _object(_parsed(line, f"{file} line {number}"), f"{file} line {number}")


def _json_rows(file: Path) -> Iterator[Row]:
    rows = _parsed(file.read_text(encoding="utf-8"), str(file))
    if not isinstance(rows, list):
        raise DataError(
            f"{file} holds a {type(rows).__name__} at its top",
            hint="a .json file is a list of objects; else use .jsonl",
        )
    for number, row in enumerate(rows):
        yield _object(row, f"{file} element {number}")


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is not a readable parquet file: {error}", hint="fetch or write it again") from error


def _hub_rows(path: str, split: str) -> Iterator[Row]:
    import datasets

    name, _, configuration = path.partition(":")
    try:
        loaded = datasets.load_dataset(name, configuration or None, split=split)
    except (
        Exception
    ) as error:  # it raises its own, httpx's, pyarrow's and the system's errors, all meaning the same here
        raise DataError(
            f"data set {path}, split {split!r}, cannot be loaded: {error}",
            hint="check the id, the split and the network; one with several configurations is named id:configuration",
        ) from error
    yield from loaded


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not JSON: {error}", hint="write one JSON object per line (.jsonl) or a list"
        ) from error


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where} is a {type(value).__name__}, not an object", hint=ACCEPTED)
    return value


def _problem(index: int, row: Row, path: str) -> Problem:
    where = f"{path} row {index}"
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        messages = tuple(_message(message, where) for message in prompt)
    else:
        question = next((row[column] for column in ("question", "problem", "prompt") if column in row), None)
        if not isinstance(question, str):
            raise DataError(f"{where} is not recognised, its columns are {_columns(row)}", hint=ACCEPTED)
        messages = ({"role": "user", "content": question},)
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise DataError(f"{where} does not end in a user's question", hint="drop the row or complete it")
    return Problem(index, messages, _answer(row, where))


def _message(value: Any, where: str) -> Message:
    role, content = (value.get("role"), value.get("content")) if isinstance(value, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(
            f"{where}: {value!r:.80} is no chat message", hint='a message is {"role": text, "content": text}'
        )
    return {"role": role, "content": content}


def _answer(row: Row, where: str) -> str | None:
    reward = row.get("reward_model")
    truth = reward.get("ground_truth") if isinstance(reward, dict) else None
    if isinstance(truth, dict):  # verl's MATH keeps the question and the solution beside it
        truth = truth.get("target")
    if truth is not None:
        return _text(truth, where)
    for column in ("answer", "solution", "completion"):
        text = _text(row.get(column), where)
        if text:
            return final_answer(text)
    return None


def _text(value: Any, where: str) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list) and len(value) == 1:
        return _text(value[0], where)
    if not isinstance(value, str | int | float):
        raise DataError(
            f"{where}: the answer {value!r:.80} is a {type(value).__name__}", hint="an answer is text or a number"
        )
    return str(value).strip() or None


def _columns(row: Row) -> str:
    return ", ".join(f"{name} ({type(value).__name__})" for name, value in row.items()) or "none"
