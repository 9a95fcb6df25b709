"""Rows of tensors in files: those asked for, in the file's type, whatever the shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from learner.parallel.file_tensors import READABLE_DTYPES, FileTensor
from services.errors import WeightError
from services.tensors import read_header


def in_file(path: Path, tensor: torch.Tensor) -> FileTensor:
    safetensors.torch.save_file({"before": torch.ones(3), "it": tensor, "later": torch.ones(5)}, path)
    return FileTensor(path, read_header(path).places["it"])


@pytest.mark.parametrize("dtype", READABLE_DTYPES.values(), ids=str)
def test_every_type_is_read_as_it_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = (torch.arange(24) % 2 if dtype is torch.bool else torch.arange(24)).to(dtype).reshape(6, 2, 2)
    found = in_file(tmp_path / "f", tensor)
    assert (READABLE_DTYPES[found.dtype], found.shape) == (dtype, (6, 2, 2))
    assert torch.equal(found[...], tensor)


@pytest.mark.parametrize("rows", [slice(0, 2), slice(3, 6), slice(5, 9), slice(4, 2), slice(None), slice(-2, None)])
def test_rows_are_those_of_a_slice(tmp_path: Path, rows: slice) -> None:
    tensor = torch.arange(18.0).reshape(6, 3)
    assert torch.equal(in_file(tmp_path / "f", tensor)[rows], tensor[rows])


def test_a_number_and_an_empty_tensor_are_tensors_too(tmp_path: Path) -> None:
    assert in_file(tmp_path / "f", torch.tensor(4.5))[...] == 4.5
    assert in_file(tmp_path / "f", torch.empty(0, 3))[...].shape == (0, 3)


def test_a_type_that_cannot_be_computed_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="type F8_E4M3, which cannot be computed with"):
        in_file(tmp_path / "f", torch.zeros(2).to(torch.float8_e4m3fn))[...]


def test_a_file_that_has_become_shorter_is_noticed(tmp_path: Path) -> None:
    found = in_file(tmp_path / "f", torch.arange(6.0))
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:-30])
    with pytest.raises(WeightError):
        found[...]
