"""Tensors in safetensors files, of which only the requested rows are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.errors import WeightError
from services.tensors import ITEM_BYTES, TensorPlace, read_bytes

READABLE_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of the types that a model computes with -> torch's."""


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One tensor in a file.

    tensor.shape        (151936, 896)
    tensor[64:128]      those rows, in the file's type
    tensor[...]         all of it
    """

    path: Path
    place: TensorPlace

    @property
    def dtype(self) -> str:
        """safetensors' name of its type."""
        return self.place.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.place.shape

    def __getitem__(self, rows: Any) -> torch.Tensor:
        """Rows by slice, or all of them by `...`; WeightError when the file has become shorter."""
        if self.dtype not in READABLE_DTYPES:
            raise WeightError(f"{self.path.name} holds a tensor of type {self.dtype}, which cannot be computed with")
        if rows is ...:
            start, shape = 0, self.shape
        else:
            start, stop, _ = rows.indices(self.shape[0])
            shape = (max(0, stop - start), *self.shape[1:])
        row_bytes = math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]
        tensor = torch.empty(shape, dtype=READABLE_DTYPES[self.dtype])
        if tensor.numel():
            read_bytes(
                self.path, self.place.begin + start * row_bytes, tensor.reshape(-1).view(torch.uint8).numpy().data
            )
        return tensor
