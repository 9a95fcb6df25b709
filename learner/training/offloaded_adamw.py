"""AdamW whose moments stay in host memory: 8 bytes a parameter less on the device.

Every operation of AdamW is elementwise, so a step goes over all parameters in pieces. While the device computes one
piece, the moments of the next arrive and those of the one before leave, each on a stream of its own:

    arriving     m1  m2  m3
    computing        p1  p2  p3
    leaving              m1  m2  m3

(As ZeRO-Offload, arXiv 2101.06840, whose step is on the processor; here the moments travel and the device computes, so
that the numbers are those of `torch.optim.AdamW`.) A step moves 8 bytes a parameter each way: about a second for 7B on
one rank at 50 GB/s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.optim.adamw import adamw

PIECE_ELEMENTS = 1 << 25
"""Of one piece at most: 128 MiB of each moment. A multiple of every vector width, so pieces change no bit."""
SLOTS = 3
"""Pieces on the device at once: one arrives, one is computed with, one leaves."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class _Piece(NamedTuple):
    parameter: torch.Tensor
    start: int
    stop: int
    """Flat elements."""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(-1)[self.start : self.stop]


class OffloadedAdamW(torch.optim.Optimizer):
    """Works on a CPU too, where the copies save nothing."""

    def __init__(self, parameters: list[torch.Tensor], settings: dict[str, Any]) -> None:
        super().__init__(parameters, settings)
        self._device = parameters[0].device
        self._largest = min(PIECE_ELEMENTS, max(p.numel() for p in parameters))
        on_gpu = self._device.type == "cuda"
        self._arriving, self._leaving = (_stream(self._device) if on_gpu else None for _ in range(2))
        for p in parameters:
            moments = {key: torch.zeros(p.shape, pin_memory=on_gpu) for key in MOMENTS}
            self.state[p] = {"step": torch.zeros((), device=p.device)} | moments

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the parameters that have a gradient."""
        (group,) = self.param_groups
        changing = [p for p in group["params"] if p.grad is not None]
        slots = [torch.empty(len(MOMENTS), self._largest, device=self._device) for _ in range(SLOTS)]
        free: list[Any] = [self._mark(None)] * SLOTS
        for number, piece in enumerate(_pieces(changing)):
            slot = number % SLOTS
            moments = slots[slot][:, : piece.stop - piece.start]
            with self._on(self._arriving, after=free[slot]):
                for key, moment in zip(MOMENTS, moments, strict=True):
                    moment.copy_(piece.of(self.state[piece.parameter][key]), non_blocking=True)
            _wait(self._mark(self._arriving))
            self._move(piece, moments, group)
            with self._on(self._leaving, after=self._mark(None)):
                for key, moment in zip(MOMENTS, moments, strict=True):
                    piece.of(self.state[piece.parameter][key]).copy_(moment, non_blocking=True)
            free[slot] = self._mark(self._leaving)
        for p in changing:
            self.state[p]["step"] += 1
        for mark in free:  # before the slots' memory is anyone else's
            _wait(mark)

    def synchronize(self) -> None:
        """Wait until the moments in host memory are those of the last step."""
        if self._leaving is not None:
            self._leaving.synchronize()

    def _move(self, piece: _Piece, moments: torch.Tensor, group: dict[str, Any]) -> None:
        assert piece.parameter.grad is not None
        beta1, beta2 = group["betas"]
        adamw(
            [piece.of(piece.parameter)],
            [piece.of(piece.parameter.grad)],
            [moments[0]],
            [moments[1]],
            [],
            [self.state[piece.parameter]["step"].clone()],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    @contextlib.contextmanager
    def _on(self, stream: torch.cuda.Stream | None, *, after: Any) -> Iterator[None]:
        """What the block copies is copied on the stream, once `after` is reached."""
        if stream is None:
            yield
            return
        stream.wait_event(after)
        with torch.cuda.stream(stream):
            yield

    def _mark(self, stream: torch.cuda.Stream | None) -> Any:
        """The present end of a stream; None: of the one that computes."""
        if self._device.type != "cuda":
            return None
        return (stream or torch.cuda.current_stream(self._device)).record_event()


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _wait(mark: Any) -> None:
    """Let the stream that computes wait until `mark` is reached."""
    if mark is not None:
        torch.cuda.current_stream().wait_event(mark)


def _pieces(parameters: list[torch.Tensor]) -> Iterator[_Piece]:
    for p in parameters:
        for start in range(0, p.numel(), PIECE_ELEMENTS):
            yield _Piece(p, start, min(start + PIECE_ELEMENTS, p.numel()))
