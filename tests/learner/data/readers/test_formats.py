"""Rows of one file of every format."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from learner.data.readers.formats import format_of, read_file
from services.errors import DataError

ROWS: list[dict[str, Any]] = [{"question": f"{n}, is it\nodd?", "answer": str(n)} for n in range(3)]


def csv_of(delimiter: str) -> bytes:
    lines = ["question" + delimiter + "answer", *(f'"{row["question"]}"{delimiter}{row["answer"]}' for row in ROWS)]
    return ("\ufeff" + "\r\n".join(lines) + "\r\n").encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def arrow(file: bool) -> bytes:
    table, sink = pyarrow.Table.from_pylist(ROWS), io.BytesIO()
    with (pyarrow.ipc.new_file if file else pyarrow.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CONTENTS = {
    "a.jsonl": LINES,
    "a.ndjson": b"\n" + LINES,
    "lines.json": LINES,
    "list.json": json.dumps(ROWS, indent=1).encode(),
    "under.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "comma.csv": csv_of(","),
    "semicolon.csv": csv_of(";"),
    "a.tsv": csv_of("\t"),
    "a.parquet": parquet(),
    "file.arrow": arrow(file=True),
    "stream.arrow": arrow(file=False),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_gives_the_same_rows_compressed_or_not(tmp_path: Path, name: str) -> None:
    packers: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": gzip.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }
    for suffix, pack in packers.items():
        path = tmp_path / (name + suffix)
        path.write_bytes(pack(CONTENTS[name]))
        assert [dict(row.record) for row in read_file(path)] == ROWS
        assert all(row.where.startswith(f"{path} ") for row in read_file(path))


def test_a_row_of_a_csv_file_is_named_by_the_line_it_begins_at(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(csv_of(","))
    assert [row.where for row in read_file(path)] == [f"{path} line {number}" for number in (2, 4, 6)]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": }\n', "line 2 is not JSON"),
        ("a.jsonl", b'{"a": 1}\n"text"\n', "line 2 is text, not an object"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.json", b'[{"a": 1}, 2]', "element 1 is a number"),
        ("a.json", b'{"a": 1}', "holds an object at its top"),
        ("a.json", b"{", "is not JSON"),
        ("a.json", b"", "is not JSON"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3 has 3 fields, the header has 2"),
        ("a.csv", b'a,b\n1,"2\n', "line 2 is not CSV"),
        ("a.csv", b"a,a\n1,2\n", "names a column twice"),
        ("a.parquet", b"PAR1 but not really", "not a readable parquet file"),
        ("a.parquet", CONTENTS["a.parquet"][:-20], "not a readable parquet file"),
        ("a.arrow", CONTENTS["file.arrow"][:300], "not a readable arrow file"),
        ("a.arrow", b"", "not a readable arrow file"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_place(tmp_path: Path, name: str, content: bytes, found: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=found) as caught:
        for row in read_file(tmp_path / name):
            if row.error is not None:
                raise row.error
    assert str(tmp_path / name) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"n": 1}\n{"n": \n5\n{"n": 2}'),
        ("a.csv", b"n\n1\n8,9\n2\n"),
        ("a.json", b'[{"n": 1}, 5, {"n": 2}]'),
    ],
)
def test_rows_after_a_bad_one_can_be_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    rows = list(read_file(tmp_path / name))
    assert [str(row.record["n"]) for row in rows if row.error is None] == ["1", "2"]
    assert {row.error.message.partition(" is ")[0].partition(" has ")[0] for row in rows if row.error is not None} <= {
        row.where for row in rows
    }


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.jsonl", ".jsonl"), ("a.v2.JSON.gz", ".json"), ("a.gz", None), ("a.xlsx", None), ("a.jsonl.zip", None)],
)
def test_the_format_is_known_by_the_suffix(name: str, suffix: str | None) -> None:
    assert format_of(Path(name)) == suffix
