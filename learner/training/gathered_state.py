"""A checkpoint of hosts that share no folder: rank 0 alone has its files, and the other ranks' rows pass through it.

Tensors are gathered or sent one at a time, so a rank needs memory for its rows and one whole tensor. The file is that
of a learner of one rank, from which any number of ranks resumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from blake3 import blake3
from pydantic import TypeAdapter

from learner.parallel.file_tensors import READABLE_DTYPES
from learner.parallel.ranks import Payload, Ranks
from learner.parallel.sharding import gather
from services import durable
from services.errors import ContractError
from services.tensors import ITEM_BYTES, encode_header

NAMES = {dtype: name for name, dtype in READABLE_DTYPES.items()}
"""torch's types -> safetensors' names of them."""

_INDEX: TypeAdapter[dict[str, tuple[str, tuple[int, ...]]]] = TypeAdapter(dict[str, tuple[str, tuple[int, ...]]])


class Saved(Protocol):
    """A tensor in a checkpoint's files."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, rows: Any) -> torch.Tensor: ...


class SentTensor:
    """A tensor that rank 0 reads whole and sends to all ranks. All of them ask for the same tensors in the same order.

    sent[64:128]      those rows
    sent[...]         all of it
    """

    def __init__(self, ranks: Ranks, number: int, dtype: str, shape: tuple[int, ...], saved: Saved | None) -> None:
        """`number`: in the checkpoint. `saved`: on rank 0, where its bytes are."""
        self.shape = shape
        self._ranks = ranks
        self._number = number
        self.dtype = dtype
        self._saved = saved

    def __getitem__(self, rows: Any) -> torch.Tensor:
        """A collective operation; ContractError when the ranks ask for different tensors."""
        leaders = int(self._ranks.broadcast(np.array([self._number]) if self._ranks.is_leader else None)[0])
        if leaders != self._number:
            raise ContractError(f"rank {self._ranks.rank} asks for tensor {self._number}, rank 0 for {leaders}")
        torch_dtype = READABLE_DTYPES[self.dtype]
        whole = torch.empty(self.shape, dtype=torch_dtype) if self._saved is None else self._saved[...]
        if whole.numel():
            self._ranks.broadcast_bytes(whole.contiguous().reshape(-1).view(torch.uint8))
        return whole if rows is ... else whole[rows]


def write_gathered(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str], ranks: Ranks) -> str:
    """Rank 0 writes all tensors whole, as safetensors, durably; the digest of the file there, empty on other ranks.

    A collective operation: every rank gives the same names.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    wholes = (gather(tensors[name].detach()) for name in order)
    if not ranks.is_leader:
        for _ in wholes:
            pass
        return ""
    places = {name: (NAMES[tensors[name].dtype], tuple(tensors[name].shape)) for name in order}
    hasher = blake3(max_threads=blake3.AUTO)
    with durable.explained(path), path.open("wb") as file:
        for piece in _pieces(encode_header(places, metadata), wholes):
            hasher.update(piece)
            file.write(piece)
    durable.fsync_file(path)
    return hasher.hexdigest()


def _pieces(header: bytes, wholes: Iterator[torch.Tensor]) -> Iterator[bytes | memoryview]:
    yield header
    for whole in wholes:
        if whole.numel():
            yield whole.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def send_index(saved: Mapping[str, Saved] | None, ranks: Ranks) -> dict[str, SentTensor]:
    """On every rank the tensors that rank 0 has in `saved`, which the others do not have."""
    sent: Payload | None = None
    if saved is not None:
        index = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in saved.items()}
        sent = np.frombuffer(_INDEX.dump_json(index), np.uint8).astype(np.int64)
    found = _INDEX.validate_json(ranks.broadcast(sent).astype(np.uint8).tobytes())
    assert all(dtype in ITEM_BYTES for dtype, _ in found.values())
    return {
        name: SentTensor(ranks, number, dtype, shape, None if saved is None else saved[name])
        for number, (name, (dtype, shape)) in enumerate(found.items())
    }
