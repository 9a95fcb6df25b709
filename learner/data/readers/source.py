"""What `data.path` names: a path or id, and the options after a question mark.

parse_source("train.jsonl")                                    Source("train.jsonl")
parse_source("train.csv?question=Frage&answer=Antwort")        its columns have other names
parse_source("rows.parquet?answer=extra_info.answer")          a column's field
parse_source("scraped.jsonl?bad_rows=leave_out")               bad rows are left out and counted, not refused
split_sources("a.jsonl?weight=2 + b.jsonl")                    ["a.jsonl?weight=2", "b.jsonl"]
"""

from __future__ import annotations

import glob
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from services.errors import DataError

OPTIONS = ("question", "answer", "bad_rows", "weight")
JOINT = " + "
"""Between several data sets."""
MOST_WEIGHT = 1000.0
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
    weight: float = 1.0
    """How often its prompts come, compared with those of weight 1."""


def split_sources(text: str) -> list[str]:
    """The data sets that a setting names, each with its own options."""
    return [text] if _exists(text) else [part.strip() for part in text.split(JOINT)]


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
                hint="options are question=COLUMN, answer=COLUMN, bad_rows=leave_out and weight=NUMBER, joined by &",
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
        _weight_in(options.get("weight", "1"), text),
    )


def _weight_in(value: str, text: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= MOST_WEIGHT:
        raise DataError(
            f"weight={value} in {text} is no number above 0 and up to {MOST_WEIGHT:g}",
            hint="weight=2 makes its prompts come twice as often as those without a weight",
        )
    return weight


def absolute_source(text: str) -> str:
    """The same sources from any working directory: a path on this machine becomes absolute, an id stays."""
    parts = split_sources(text)
    if len(parts) > 1:
        return JOINT.join(map(absolute_source, parts))
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
