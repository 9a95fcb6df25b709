"""Copies of a rank's state in host memory, for a checkpoint that is written while training goes on.

The buffers are kept from one checkpoint to the next: allocating pinned memory takes longer than filling it. A GPU
copies on a stream of its own, so the host does not wait, and what it computes next waits for the copy alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


class HostCopies:
    """One set of buffers: what was taken before is overwritten by the next `take`.

    copies = HostCopies()
    taken = copies.take(tensors)       # being filled
    copies.wait()                      # on any thread: filled
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._stream: torch.cuda.Stream | None = None

    def take(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Begin to copy. The tensors may be changed at once by what is queued on their device, not by other means."""
        on_gpu = next((t.device for t in tensors.values() if t.is_cuda), None)
        self._buffers = {name: self._buffer(name, t, pinned=t.is_cuda) for name, t in tensors.items()}
        if on_gpu is None:
            self._copy(tensors)
            return self._buffers
        self._stream = self._stream or torch.cuda.Stream(on_gpu)  # type: ignore[no-untyped-call]
        computing = torch.cuda.current_stream(on_gpu)
        self._stream.wait_stream(computing)
        with torch.cuda.stream(self._stream):
            self._copy(tensors)
        computing.wait_stream(self._stream)
        return self._buffers

    def wait(self) -> None:
        """Until the copies are whole."""
        if self._stream is not None:
            self._stream.synchronize()

    def _buffer(self, name: str, tensor: torch.Tensor, *, pinned: bool) -> torch.Tensor:
        kept = self._buffers.get(name)
        if kept is not None and (kept.shape, kept.dtype) == (tensor.shape, tensor.dtype):
            return kept
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)

    def _copy(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            self._buffers[name].copy_(tensor, non_blocking=True)
