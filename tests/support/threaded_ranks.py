"""Ranks of a learner as threads of one process: what they send each other goes through memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from learner.parallel.ranks import Order, Payload, Ranks

PATIENCE_S = 30.0

T = TypeVar("T")


class _Meeting:
    """Where all ranks meet for each exchange."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=PATIENCE_S)
        self.brought: list[Any] = [None] * size


class ThreadedRanks(Ranks):
    """One of the ranks; collective operations wait for all of them, and fail when one never comes."""

    def __init__(self, rank: int, size: int, meeting: _Meeting, *, nodes: int, shard_within_node: bool) -> None:
        super().__init__(rank, size, nodes=nodes, shard_within_node=shard_within_node)
        self._meeting = meeting

    def _exchange(self, own: Any) -> list[Any]:
        self._meeting.brought[self.rank] = own
        self._meeting.barrier.wait()
        brought = list(self._meeting.brought)
        self._meeting.barrier.wait()
        return brought

    def send_order(self, order: Order) -> None:
        """All ranks do the same work in a test, so the others hear of what they do anyway."""
        heard = self.broadcast(np.array([order]) if self.is_leader else None)
        assert Order(int(heard[0])) is order

    def broadcast(self, payload: Payload | None) -> Payload:
        assert payload is None or payload.dtype == np.int64, "all ranks agree on it beforehand"
        sent: Payload = self._exchange(payload)[0]
        return sent.copy()

    def all_reduce_sum(self, totals: torch.Tensor) -> torch.Tensor:
        total = sum(self._exchange(totals.clone()))
        assert isinstance(total, torch.Tensor)
        return totals.copy_(total)

    def broadcast_bytes(self, content: torch.Tensor) -> None:
        content.copy_(self._exchange(content.clone())[0])


def on_ranks(
    work: Callable[[ThreadedRanks], T], size: int, *, nodes: int = 1, shard_within_node: bool = False
) -> list[T]:
    """What the work returns on each rank, by rank; the first error of one of them, if there is any."""
    meeting = _Meeting(size)

    def run(rank: int) -> T:
        try:
            return work(ThreadedRanks(rank, size, meeting, nodes=nodes, shard_within_node=shard_within_node))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
