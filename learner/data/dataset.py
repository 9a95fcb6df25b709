"""Reads questions, each with its reference answer if there is one, from files and the Hugging Face hub.

Training prompts and benchmarks both come from here.

Accepted rows, by their columns:

    prompt = [{role, content}, ...], reward_model = {ground_truth}     verl
    question, answer                                                   GSM8K ("... #### 72") and plain ones
    problem, answer and/or final_answer, solution                      the answer, else what the solution states
    prompt, completion                                                 plain text

The answer may be missing: self-training needs none. A proof, or a word for a missing answer ("notfound"), is none.
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

from learner.data.answers import final_answer, is_checkable
from services.errors import DataError

Record = Mapping[str, Any]
"""A row of a data set as it was read: column -> value."""
Message = dict[str, str]

FILE_SUFFIXES = (".jsonl", ".json", ".parquet")
ACCEPTED = (
    "a row has `prompt` (chat messages or text), `question` or `problem`, and for its answer "
    "`reward_model.ground_truth`, `answer`, `solution`, `completion` or nothing"
)
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a data set."""

    row: int
    """Number of its row in the data set, from 0."""
    messages: tuple[Message, ...]
    """The conversation so far, as {"role", "content"}; the last message is the user's."""
    answer: str | None
    """The reference answer as text, where the row has one."""

    @property
    def text(self) -> str:
        """The user's question."""
        return self.messages[-1]["content"]


def read_questions(path: str, *, split: str = "train", limit: int | None = None) -> list[Question]:
    """The first `limit` questions of a file, a folder or a hub data set; DataError when there are none.

    read_questions("train.jsonl")                        .jsonl, .json (a list of objects) or .parquet
    read_questions("folder/", split="test")              a folder that datasets.load_dataset understands
    read_questions("openai/gsm8k:main", split="test")    a hub id, with :configuration where it has several
    """
    records = islice(_records(path, split), limit)
    questions = [_question(row, record, path) for row, record in enumerate(records)]
    if not questions:
        raise DataError(f"{path} holds no rows", hint=f"name a data set with prompts: {ACCEPTED}")
    return questions


def _records(path: str, split: str) -> Iterator[Record]:
    if not path:
        raise DataError("no prompts are named", hint="set data.path to a file or a Hugging Face data set id")
    file = Path(path).expanduser()
    if file.suffix in FILE_SUFFIXES or file.is_file():
        return _file_records(file)
    if file.is_dir() or _HUB_ID.fullmatch(path):
        return _hub_records(path, split)
    raise DataError(
        f"{path} is neither a file nor a folder, and no Hugging Face id",
        hint=f"accepted are {', '.join(FILE_SUFFIXES)} files, folders, and ids like openai/gsm8k:main",
    )


def _file_records(file: Path) -> Iterator[Record]:
    readers = {".jsonl": _jsonl_records, ".json": _json_records, ".parquet": _parquet_records}
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


def _jsonl_records(file: Path) -> Iterator[Record]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _object(_parsed(line, f"{file} line {number}"), f"{file} line {number}")


def _json_records(file: Path) -> Iterator[Record]:
    records = _parsed(file.read_text(encoding="utf-8"), str(file))
    if not isinstance(records, list):
        raise DataError(
            f"{file} holds a {type(records).__name__} at its top",
            hint="a .json file is a list of objects; else use .jsonl",
        )
    for number, record in enumerate(records):
        yield _object(record, f"{file} element {number}")


def _parquet_records(file: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is not a readable parquet file: {error}", hint="fetch or write it again") from error


def _hub_records(path: str, split: str) -> Iterator[Record]:
    import datasets

    name, _, configuration = path.partition(":")
    try:
        loaded = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:  # its own, httpx's, pyarrow's and the system's errors all mean the same here
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


def _object(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{where} is a {type(value).__name__}, not an object", hint=ACCEPTED)
    return value


def _question(row: int, record: Record, path: str) -> Question:
    where = f"{path} row {row}"
    prompt = record.get("prompt")
    if isinstance(prompt, list):
        messages = tuple(_message(message, where) for message in prompt)
    else:
        text = next((record[column] for column in ("question", "problem", "prompt") if column in record), None)
        if not isinstance(text, str):
            raise DataError(f"{where} is not recognised, its columns are {_columns(record)}", hint=ACCEPTED)
        messages = ({"role": "user", "content": text},)
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise DataError(f"{where} does not end in a user's question", hint="drop the row or complete it")
    return Question(row, messages, _answer(record, where))


def _message(value: Any, where: str) -> Message:
    role, content = (value.get("role"), value.get("content")) if isinstance(value, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(
            f"{where}: {value!r:.80} is no chat message", hint='a message is {"role": text, "content": text}'
        )
    return {"role": role, "content": content}


def _answer(record: Record, where: str) -> str | None:
    reward = record.get("reward_model")
    truth = reward.get("ground_truth") if isinstance(reward, dict) else None
    if isinstance(truth, dict):  # in verl's MATH it also holds the question and the solution
        truth = truth.get("target")
    if truth is not None:
        text = _text(truth, where)
        return text if text and is_checkable(text) else None
    for column in ("answer", "final_answer", "solution", "completion"):
        text = _text(record.get(column), where)
        if text:
            return final_answer(text, worked=column == "solution")
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


def _columns(record: Record) -> str:
    return ", ".join(f"{name} ({type(value).__name__})" for name, value in record.items()) or "none"
