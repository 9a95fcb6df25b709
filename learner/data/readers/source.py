"""What `data.path` names: a path or id, and the options after a question mark.

parse_source("train.jsonl")                                    Source("train.jsonl")
parse_source("train.csv?question=Frage&answer=Antwort")        its columns have other names
parse_source("rows.parquet?answer=extra_info.answer")          a column's field
parse_source("scraped.jsonl?bad_rows=leave_out")               bad rows are left out and counted, not refused
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from services.errors import DataError

OPTIONS = ("question", "answer", "bad_rows")
_QUERY = re.compile(r"\?(?P<query>\w+=[^?*/]*)$")


@dataclass(frozen=True, slots=True)
class Source:
    """A data set as a setting names it."""

    path: str
    """File, folder, glob or Hugging Face id."""
    question: str | None = None
    """The column with the question; None: found by its name."""
    answer: str | None = None
    """The column with the reference answer; None: found by its name."""
    bad_rows: Literal["refuse", "leave_out"] = "refuse"


def parse_source(text: str) -> Source:
    """The source that a setting names; DataError for an option that does not exist."""
    match = None if _exists(text) else _QUERY.search(text)
    if match is None:
        return Source(text)
    options: dict[str, str] = {}
    for key, value in parse_qsl(match["query"], keep_blank_values=True):
        if key not in OPTIONS or not value or key in options:
            raise DataError(
                f"{key}={value} in {text} is not an option of a data set, or is given twice or without a value",
                hint="options are question=COLUMN, answer=COLUMN and bad_rows=leave_out, joined by &",
            )
        options[key] = value
    bad_rows = options.get("bad_rows", "refuse")
    if bad_rows not in ("refuse", "leave_out"):
        raise DataError(f"bad_rows={bad_rows} in {text} is unknown", hint="it is refuse or leave_out")
    return Source(
        text[: match.start()],
        options.get("question"),
        options.get("answer"),
        "leave_out" if bad_rows == "leave_out" else "refuse",
    )


def absolute_source(text: str) -> str:
    """The same source from any working directory: a path on this machine becomes absolute, an id stays."""
    match = None if _exists(text) else _QUERY.search(text)
    path, query = (text[: match.start()], match[0]) if match else (text, "")
    if path and (_exists(path) or (is_glob(path) and matching_files(Path(path).expanduser()))):
        return str(Path(path).expanduser().absolute()) + query
    return text


def is_glob(path: str) -> bool:
    """Whether the path is a pattern for several files."""
    return not _exists(path) and glob.has_magic(path)


def matching_files(pattern: Path) -> list[Path]:
    """The files that match, in the order of their names."""
    found = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return [Path(name) for name in sorted(found) if Path(name).is_file()]


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, no home
        return False
