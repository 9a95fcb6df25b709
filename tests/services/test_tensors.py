"""Safetensors files are read exactly or refused, and digests identify content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from services.errors import WeightError
from services.tensors import (
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    RawTensor,
    describe,
    digest_bytes,
    digest_file,
    read_safetensors,
    version_digest,
    write_safetensors,
)
from tests.support.weight_samples import bits, first_version, tensor


@pytest.mark.parametrize("dtype", ITEM_BYTES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5)])
def test_every_element_type_survives_a_round_trip(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    tensors = {"a": tensor(dtype, shape, 1), "b": tensor("U8", (3,), 2), "c": tensor(dtype, shape, 3)}
    write_safetensors(tmp_path / "t", tensors)
    assert bits(read_safetensors(tmp_path / "t")) == bits(tensors)


def test_files_are_exchanged_with_the_safetensors_library(tmp_path: Path) -> None:
    theirs: dict[str, NDArray[Any]] = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "i": np.array([7], dtype=np.int64),
    }
    save_file(theirs, tmp_path / "theirs")
    write_safetensors(tmp_path / "ours", read_safetensors(tmp_path / "theirs"))
    loaded = load_file(tmp_path / "ours")
    assert loaded.keys() == theirs.keys()
    assert all(np.array_equal(loaded[name], theirs[name]) for name in theirs)


def test_reading_copies_nothing_and_cannot_be_written_through(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "t", first_version())
    assert not any(tensor.data.flags.writeable for tensor in read_safetensors(tmp_path / "t").values())


def test_writing_leaves_no_other_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "t", first_version())
    write_safetensors(tmp_path / "t", first_version(1))
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_no_tensors_at_all_are_a_file_too(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "t", {})
    assert read_safetensors(tmp_path / "t") == {}


def _file(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data


def _row(dtype: Any = "U8", shape: Any = (2,), offsets: Any = (0, 2)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x00",
        _file({}, length=1 << 60),
        _file({}, length=MAX_HEADER_BYTES + 1),
        _file(b"not json"),
        _file(b"\xff\xfe"),
        _file(b"[" * 100_000),
        _file([1, 2]),
        _file({"a": 3}),
        _file({"a": {}}),
        _file(b'{"a": 1, "a": 2}'),
        _file({"a": _row("F4")}, b"12"),
        _file({"a": _row(7)}, b"12"),
        _file({"a": _row(shape=(-2,))}, b"12"),
        _file({"a": _row(shape=(2.0,))}, b"12"),
        _file({"a": _row(shape=(True, 2))}, b"12"),
        _file({"a": _row(shape=(1 << 62, 4))}, b"12"),
        _file({"a": _row(shape=[1] * 100)}, b"12"),
        _file({"a": _row(shape=(3,))}, b"12"),
        _file({"a": _row(offsets=(0, 9))}, b"12"),
        _file({"a": _row(offsets=(2, 0))}, b"12"),
        _file({"a": _row(offsets=(1, 3))}, b"123"),
        _file({"a": _row(offsets=(0, 2, 4))}, b"12"),
        _file({"a": _row(), "b": _row(offsets=(1, 3))}, b"123"),
        _file({"a": _row()}, b"12 and more"),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(WeightError):
        read_safetensors(tmp_path / "bad.safetensors")


def test_a_tensor_whose_bytes_do_not_fit_its_shape_is_refused() -> None:
    with pytest.raises(WeightError, match="takes 8 bytes, got 7"):
        RawTensor("BF16", (4,), np.zeros(7, dtype=np.uint8))


def test_digests_are_blake3(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"weights")
    (tmp_path / "empty").write_bytes(b"")
    assert digest_file(tmp_path / "f") == digest_bytes(b"weights") == blake3(b"weights").hexdigest()
    assert digest_file(tmp_path / "empty") == digest_bytes(b"")


def test_a_version_is_identified_by_content_not_by_order() -> None:
    tensors = first_version()
    turned = dict(reversed(tensors.items()))
    assert version_digest(describe(tensors)) == version_digest(describe(turned)[::-1])


def test_any_change_of_name_type_shape_or_bit_makes_another_version() -> None:
    base = {"a": tensor("BF16", (2, 4)), "b": tensor("U8", (4,))}
    flipped = base["a"].data.copy()
    flipped[5] ^= 1
    others = [
        {"x": base["a"], "b": base["b"]},
        {**base, "a": RawTensor("F16", (2, 4), base["a"].data)},
        {**base, "a": RawTensor("BF16", (4, 2), base["a"].data)},
        {**base, "a": RawTensor("BF16", (2, 4), flipped)},
        {"a": base["a"]},
    ]
    digests = {version_digest(describe(tensors)) for tensors in [base, *others]}
    assert len(digests) == 6
