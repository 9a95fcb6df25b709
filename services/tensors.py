"""Tensors as raw bytes: safetensors files and digests.

Arithmetic never happens here, so a tensor is its element type by name, its shape and its little-endian bytes; types
that numpy lacks (BF16, F8) need nothing special.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from pydantic import ValidationError

from services import durable
from services.contracts import TensorEntry
from services.errors import WeightError

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "I64": 8, "U64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes per element of each safetensors type this project carries."""

MAX_HEADER_BYTES = 100_000_000
"""A longer header is refused before it is read; the limit is safetensors' own."""

MAX_DIMENSIONS = 32
MAX_ELEMENTS = 1 << 56
"""Bounds the arithmetic on shapes that come from outside."""

PIECE_BYTES = 1 << 22
"""Read at a time of a file whose digest is asked."""

DIGEST_THREADS = min(8, len(os.sched_getaffinity(0)))
"""Tensors digested at once: one core reads a tenth of what memory gives."""

LENGTH_BYTES = 8
HEADER_ALIGNMENT = 8
FILE_MODE = 0o644

Result = TypeVar("Result")

Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class RawTensor:
    """One tensor in checkpoint coordinates; `data` holds `nbytes` raw little-endian bytes, flat."""

    dtype: str
    """safetensors' name of the element type, a key of `ITEM_BYTES`."""
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise WeightError(
                f"element type {self.dtype!r} is not supported", hint=f"use one of {', '.join(ITEM_BYTES)}"
            )
        if self.data.dtype != np.uint8 or self.data.ndim != 1:
            raise WeightError(f"tensor data must be flat uint8, got {self.data.dtype} of shape {self.data.shape}")
        expected = math.prod(self.shape) * ITEM_BYTES[self.dtype]
        if self.data.size != expected:
            raise WeightError(f"{self.dtype} of shape {self.shape} takes {expected} bytes, got {self.data.size}")

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def nbytes(self) -> int:
        return int(self.data.size)


Tensors = Mapping[str, RawTensor]
"""Tensors by their names in the checkpoint."""


def digest_bytes(data: Buffer) -> str:
    """BLAKE3 of the bytes, 64 hex digits."""
    return blake3(data.data if isinstance(data, np.ndarray) else data, max_threads=blake3.AUTO).hexdigest()


def digest_file(path: Path) -> str:
    """BLAKE3 of the file's bytes, 64 hex digits. Read in pieces: mapped, it would count as memory of the process."""
    hasher, piece = blake3(max_threads=blake3.AUTO), memoryview(bytearray(PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(piece):
            hasher.update(piece[:size])
    return hasher.hexdigest()


def describe(tensors: Tensors) -> tuple[TensorEntry, ...]:
    """The manifest's entries of these tensors, sorted by name; digested on all cores, as verifying a version is."""
    names = sorted(tensors)
    return tuple(on_all_cores(describe_one, names, [tensors[name] for name in names]))


def on_all_cores(function: Callable[..., Result], *arguments: Sequence[Any]) -> list[Result]:
    """`map` on a thread per core, for functions that release the interpreter, as digests do."""
    with ThreadPoolExecutor(DIGEST_THREADS, thread_name_prefix="digest") as pool:
        return list(pool.map(function, *arguments))


def describe_one(name: str, tensor: RawTensor) -> TensorEntry:
    """One manifest entry; WeightError when the name is empty or too long."""
    fields = {"name": name, "dtype": tensor.dtype, "shape": tensor.shape, "digest": digest_bytes(tensor.data)}
    try:
        return TensorEntry.model_validate(fields)
    except ValidationError as error:
        raise WeightError(f"tensor name {name[:80]!r} does not fit a manifest") from error


def version_digest(entries: Sequence[TensorEntry]) -> str:
    """Identity of a version's content: BLAKE3 over names, types, shapes and digests, whatever their order."""
    rows = sorted([entry.name, entry.dtype, list(entry.shape), entry.digest] for entry in entries)
    return digest_bytes(json.dumps(rows, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a safetensors file holds a tensor."""

    dtype: str
    """safetensors' name of the element type; quantised files have some that `ITEM_BYTES` lacks."""
    shape: tuple[int, ...]
    begin: int
    """Offset in the file of its first byte."""
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a safetensors file says of itself."""

    places: Mapping[str, TensorPlace]
    metadata: Mapping[str, str]


def read_header(path: Path) -> SafetensorsHeader:
    """The file's header; WeightError when it is malformed, or the file is shorter or longer than it says."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, data_start = _read_header(file, size, path)
    reached = data_start
    for name, place in sorted(header.places.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != reached or not place.begin <= place.end <= size:
            raise WeightError(
                f"{path.name}: tensor {name!r} takes bytes {place.begin} to {place.end} of a file of {size}, "
                f"expected to start at {reached}"
            )
        item_bytes = ITEM_BYTES.get(place.dtype)
        expected = None if item_bytes is None else math.prod(place.shape) * item_bytes
        if expected not in (None, place.end - place.begin):
            raise WeightError(f"{path.name}: {name!r} takes {expected} bytes, the header gives it another number")
        reached = place.end
    if reached != size:
        raise WeightError(f"{path.name}: {size - reached} bytes belong to no tensor")
    return header


def read_safetensors(path: Path) -> dict[str, RawTensor]:
    """Read-only views into the memory-mapped file; WeightError when it is not sound safetensors."""
    places = read_header(path).places
    with path.open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    return {
        name: RawTensor(place.dtype, place.shape, mapped[place.begin : place.end])
        for name, place in sorted(places.items(), key=lambda item: item[1].begin)
    }


def read_bytes(path: Path, start: int, buffer: memoryview) -> None:
    """Fill the buffer with the file's bytes from `start` on. Mapped bytes would count as memory of the process."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        filled = 0
        while filled < len(buffer):
            size = file.readinto(buffer[filled:])
            if not size:
                raise WeightError(f"{path.name} ends {len(buffer) - filled} bytes too early")
            filled += size


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[SafetensorsHeader, int]:
    """The header, and where in the file it ends."""
    prefix = file.read(LENGTH_BYTES)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH_BYTES or length > min(size - LENGTH_BYTES, MAX_HEADER_BYTES):
        raise WeightError(f"{path.name}: a header of {length} bytes does not fit a file of {size} bytes")
    data_start = LENGTH_BYTES + length
    try:
        header = json.loads(file.read(length), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise TypeError("the header is not an object")
        metadata = header.pop("__metadata__", {})
        places = {name: _read_row(name, row, data_start) for name, row in header.items()}
        return SafetensorsHeader(places, metadata), data_start
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightError(f"{path.name}: malformed safetensors header: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice")
    return members


def _read_row(name: str, row: Any, data_start: int) -> TensorPlace:
    begin, end = row["data_offsets"]
    shape = tuple(row["shape"])
    dtype = row["dtype"]
    numbers_sound = all(type(number) is int and 0 <= number < MAX_ELEMENTS for number in (begin, end, *shape))
    if not numbers_sound or len(shape) > MAX_DIMENSIONS or not isinstance(dtype, str):
        raise ValueError(f"tensor {name[:80]!r} has a malformed type, shape or position")
    return TensorPlace(dtype, shape, data_start + begin, data_start + end)


def write_safetensors(path: Path, tensors: Tensors, *, lasting: bool = True) -> None:
    """Writes under a temporary name and renames, so the file is complete or absent.

    `lasting` False: it need not outlive a power cut, as it is read at once and thrown away.
    """
    with durable.explained(path):
        handle, name = tempfile.mkstemp(prefix=durable.TEMPORARY_PREFIX, dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                for block in _blocks(tensors):
                    file.write(block)
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
            temporary.chmod(FILE_MODE)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if lasting:
            durable.fsync_folder(path.parent)


def encode_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The start of a safetensors file whose data follow in this order; `tensors`: name -> safetensors' type, shape."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    reached = 0
    for name, (dtype, shape) in tensors.items():
        end = reached + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [reached, end]}
        reached = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % HEADER_ALIGNMENT)
    return len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded


def encoded_bytes(tensors: Tensors) -> int:
    """Size of the file that `write_safetensors` writes."""
    return sum(memoryview(block).nbytes for block in _blocks(tensors))


def _blocks(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """Header, then data; widest elements first, so that every tensor is aligned to its element."""
    order = sorted(tensors, key=lambda name: (-tensors[name].item_bytes, name))
    # transformers refuses a file without this marker; it names the layout of linear weights, not a library
    yield encode_header({name: (tensors[name].dtype, tensors[name].shape) for name in order}, {"format": "pt"})
    for name in order:
        yield np.ascontiguousarray(tensors[name].data).data
