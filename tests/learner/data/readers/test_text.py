"""Text of files, compressed or not, with and without a byte order mark."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from learner.data.readers.text import text_lines, whole_text
from services.errors import DataError

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", PACKED)
def test_text_is_the_same_however_it_is_stored(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACKED[suffix]("\ufeffé\nzwei\n".encode()))
    assert list(text_lines(path)) == [(1, "é\n"), (2, "zwei\n")]
    assert whole_text(path) == "é\nzwei\n"


def test_several_frames_in_one_file_are_all_read(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(PACKED[suffix](b"one\n") + PACKED[suffix](b"two\n"))
        assert whole_text(path) == "one\ntwo\n"


def test_files_that_were_joined_have_marks_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffone\n\ufefftwo\n".encode())
    assert whole_text(tmp_path / "a") == "one\ntwo\n"


@pytest.mark.parametrize("suffix", [suffix for suffix in PACKED if suffix])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    """Also where what is left of it ends with a whole line."""
    content = "".join(f"line {number * number}\n" for number in range(20_000)).encode()
    whole = PACKED[suffix](content)
    path = tmp_path / f"a{suffix}"
    for length in (len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="cannot be read"):
            whole_text(path)
    path.write_bytes(b"not compressed at all")
    with pytest.raises(DataError, match="cannot be read"):
        whole_text(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"fine\ncaf\xe9\n", r"line 2 cannot be read: byte 0xe9 at place 4"), ("a".encode("utf-16"), "is UTF-16 text")],
)
def test_other_encodings_are_refused_by_line(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=found) as caught:
        whole_text(tmp_path / "a")
    assert "iconv" in caught.value.hint
