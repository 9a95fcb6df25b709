"""Opens files that may be compressed, and decodes their text as UTF-8 with or without a byte order mark."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import zstandard

from services.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHUNK_BYTES = 1 << 17
BYTE_ORDER_MARK = "\ufeff"
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class _ZstdStream(io.RawIOBase):
    """A zstd file's content, frame after frame. zstandard's own reader takes a file that was cut short for whole."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._in_frame = False
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        while not self._ready:
            packed = self._frame.unused_data if self._frame.eof else b""
            packed = packed or self._file.read(CHUNK_BYTES)
            if not packed:
                if self._in_frame and not self._frame.eof:
                    raise EOFError("the file ends within a compressed frame")
                return 0
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._in_frame = True
            self._ready = self._frame.decompress(packed)
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ready))
        view[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_zst(path: Path) -> IO[bytes]:
    return io.BufferedReader(_ZstdStream(path))


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".zst": _open_zst,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
COMPRESSIONS = tuple(_OPENERS)
"""Suffixes of compressed files that are read."""


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's content, decompressed as its suffix says; DataError when it cannot be read to its end."""
    opener = _OPENERS.get(path.suffix.lower(), _open_plain)
    try:
        with opener(path) as content:
            yield content
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="check that the file is whole and readable") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of every line, from 1, with its line end; DataError names the line that is not UTF-8."""
    with open_bytes(path) as content:
        for number, line in enumerate(content, start=1):
            if number == 1:
                _refuse_other_encodings(path, line)
            # Files that were joined have a byte order mark in the middle.
            yield number, _decoded(line, f"{path} line {number}").removeprefix(BYTE_ORDER_MARK)


def whole_text(path: Path) -> str:
    """The file's text without its byte order mark."""
    return "".join(line for _, line in text_lines(path))


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} cannot be read: byte {line[error.start]:#04x} at place {error.start + 1} is not UTF-8",
            hint="save the file as UTF-8, for example with iconv -f latin1 -t utf-8",
        ) from error


def _refuse_other_encodings(path: Path, start: bytes) -> None:
    encoding = _OTHER_ENCODINGS.get(start[:2])
    if encoding is not None:
        raise DataError(f"{path} is {encoding} text", hint=f"save it as UTF-8: iconv -f {encoding.lower()} -t utf-8")
