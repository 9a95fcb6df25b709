"""Reads the rows of one file: .jsonl, .json, .csv, .tsv, .parquet or .arrow, compressed or not."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from learner.data.readers.rows import Row, in_words
from learner.data.readers.text import COMPRESSIONS, open_bytes, text_lines, whole_text
from services.errors import DataError

ROW_LISTS = ("data", "rows", "train", "test", "examples", "instances", "problems", "questions")
"""Keys under which a .json file with an object at its top has its rows."""
BATCH_ROWS = 1024


def format_of(path: Path) -> str | None:
    """The suffix that says how the file is read, without that of its compression; None when no reader has it."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _READERS else None


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a file of a known format; DataError names the file and the line that cannot be read."""
    suffix = format_of(path)
    if suffix is None:
        raise DataError(
            f"{path} has the suffix {path.suffix!r}",
            hint=f"accepted are {', '.join(FORMATS)}, also with {', '.join(COMPRESSIONS)}: convert or rename it",
        )
    return _READERS[suffix](path)


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in text_lines(path):
        if line.strip():
            yield _parsed_row(line, f"{path} line {number}")


def _json(path: Path) -> Iterator[Row]:
    text = whole_text(path)
    if _is_json_lines(text):
        return _json_lines(path)
    content = _parsed(text, str(path), "a .json file is a list of objects, or one object per line")
    if isinstance(content, dict):
        content = next((content[key] for key in ROW_LISTS if isinstance(content.get(key), list)), content)
    if not isinstance(content, list):
        raise DataError(
            f"{path} holds {in_words(content)} at its top",
            hint=f"a .json file is a list of objects, alone or under {', '.join(ROW_LISTS)}; else use .jsonl",
        )
    return (_row(one, f"{path} element {number}") for number, one in enumerate(content))


def _is_json_lines(text: str) -> bool:
    """Many files called .json hold an object per line: at least two lines, the first an object of its own."""
    first, _, rest = text.strip().partition("\n")
    if not first.startswith("{") or not rest.strip():
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _csv(path: Path, delimiter: str | None = None) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    lines = text_lines(path)
    _, first = next(lines, (0, ""))
    if not first.strip():
        return
    chosen = delimiter or max(",;\t|", key=first.count)
    texts = (line for _, line in _with_first(first, lines))
    reader = csv.reader(texts, delimiter=chosen, strict=True)
    number = 1
    try:
        header = [name.strip() for name in next(reader)]
        if len({*header}) < len(header):
            raise DataError(f"{path} line 1 names a column twice: {first.strip():.200}", hint="rename one of them")
        number = reader.line_num + 1
        for values in reader:
            where = f"{path} line {number}"
            if len(values) == len(header):
                yield Row(where, dict(zip(header, values, strict=True)))
            elif values:
                error = DataError(
                    f"{where} has {len(values)} fields, the header has {len(header)}",
                    hint=f"fields are separated by {chosen!r}; one that contains it stands in quotes",
                )
                yield Row(where, {}, error)
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path} line {number} is not CSV: {error}", hint="check the quotes of that line") from error


def _with_first(first: str, rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield 1, first
    yield from rest


def _tsv(path: Path) -> Iterator[Row]:
    return _csv(path, "\t")


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    def batches(content: IO[bytes]) -> Iterator[Any]:
        # Parquet is read from its end: what is compressed once more is held in memory.
        whole = content if path.suffix.lower() not in COMPRESSIONS else io.BytesIO(content.read())
        with pyarrow.parquet.ParquetFile(whole) as table:
            yield from table.iter_batches(batch_size=BATCH_ROWS)

    return _arrow_rows(path, batches, "parquet")


def _arrow(path: Path) -> Iterator[Row]:
    import pyarrow.ipc

    def batches(content: IO[bytes]) -> Iterator[Any]:
        start = content.read(6)
        whole = pyarrow.BufferReader(start + content.read())
        opened = pyarrow.ipc.open_file if start == b"ARROW1" else pyarrow.ipc.open_stream
        with opened(whole) as reader:
            if start == b"ARROW1":
                yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                yield from reader

    return _arrow_rows(path, batches, "arrow")


def _arrow_rows(path: Path, batches: Callable[[IO[bytes]], Iterator[Any]], kind: str) -> Iterator[Row]:
    import pyarrow

    number = 0
    with open_bytes(path) as content:
        try:
            for batch in batches(content):
                for record in batch.to_pylist():
                    yield Row(f"{path} row {number}", record)
                    number += 1
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise DataError(
                f"{path} is not a readable {kind} file, from row {number} on: {error}", hint="fetch or write it again"
            ) from error


def _parsed(text: str, where: str, hint: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}", hint=hint) from error


def _parsed_row(line: str, where: str) -> Row:
    try:
        return _row(_parsed(line, where, "write one JSON object per line"), where)
    except DataError as error:
        return Row(where, {}, error)


def _row(value: Any, where: str) -> Row:
    if isinstance(value, dict):
        return Row(where, value)
    error = DataError(f"{where} is {in_words(value)}, not an object", hint="a row is an object of named columns")
    return Row(where, {}, error)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
FORMATS = tuple(_READERS)
"""Suffixes of files that are read."""
