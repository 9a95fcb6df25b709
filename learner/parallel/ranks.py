"""The processes that train together: which one this is, what they tell each other and sum. Knows no model, no run.

Rank 0 decides and talks to the world; the other ranks follow its orders (`learner.training.follower`). Everything that
all of them do at once starts with an order:

    rank 0                              the others
    ranks.announce(Order.TRAIN)         order = ranks.hear()
    for row in ranks.share(rows): ...   for row in ranks.share(()): ...
    ranks.sum_(totals)                  ranks.sum_(totals)

What they tell each other are arrays of integers: nothing is pickled. With one process every exchange is a no-op.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from enum import IntEnum
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from learner.parallel.launch_env import RANK, SIZE, STORE
from services.errors import ConfigError, UnavailableError

Row = NDArray[np.int64]
"""[any number] integers that rank 0 tells the others."""

SILENCE_DEADLINE = timedelta(days=1)
"""For the next word of rank 0, whose own waits have deadlines; only a pause is as long as a person likes."""
COMPUTE_DEADLINE = timedelta(minutes=30)
"""For the slowest rank of a computation that all take part in."""


class Order(IntEnum):
    """What rank 0 has the others do."""

    TRAIN = 1
    FORWARD = 2
    WEIGHTS = 3
    BEGIN_CHECKPOINT = 4
    COMMIT_CHECKPOINT = 5
    LOAD_CHECKPOINT = 6
    STOP = 7
    ADAPTERS = 8


class _Mark(IntEnum):
    """First element of a shared row."""

    ROW = 1
    END = 2
    ABANDONED = 3


class Abandoned(Exception):  # noqa: N818 - not an error: rank 0 ended the round early
    """Rank 0 ended what it shared before its end."""


class Ranks:
    """One process of `size`; `Ranks()` is alone."""

    def __init__(self, rank: int = 0, size: int = 1, control: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._control = control
        """Process group of the words and sums, over gloo whatever the device is."""

    @property
    def leads(self) -> bool:
        """Whether this is the rank that decides."""
        return self.rank == 0

    def announce(self, order: Order) -> None:
        """On rank 0, tell the others what comes next; they are there because they heard it."""
        if self.leads:
            self.tell(np.array([order]))

    def hear(self) -> Order:
        """The next order of rank 0."""
        return Order(int(self.tell(None)[0]))

    def tell(self, row: Row | None) -> Row:
        """Rank 0's row on every rank; the others give None. UnavailableError when rank 0 is gone."""
        if self.size == 1:
            assert row is not None
            return row
        try:
            length = torch.tensor([0 if row is None else row.size])
            dist.broadcast(length, src=0, group=self._control)
            content = torch.empty(int(length), dtype=torch.int64) if row is None else torch.from_numpy(row)
            dist.broadcast(content, src=0, group=self._control)
        except RuntimeError as error:  # how gloo reports a peer that has died
            raise UnavailableError(
                f"rank {self.rank} of {self.size} has lost another rank: {error}",
                hint="the first rank that died says why, above; the run resumes when it is started again",
            ) from error
        told: Row = content.numpy()
        return told

    def share(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Rank 0's `rows` on every rank, each as soon as rank 0 has it; what the others give is ignored.

        When rank 0's iterator raises, the others raise Abandoned at the same place.
        """
        if self.size == 1:
            yield from rows
        elif self.leads:
            try:
                for row in rows:
                    yield self.tell(np.concatenate([[_Mark.ROW], row]))[1:]
            except Exception:  # whatever it is, the others wait for the next row
                self.tell(np.array([_Mark.ABANDONED]))
                raise
            self.tell(np.array([_Mark.END]))
        else:
            while (told := self.tell(None))[0] == _Mark.ROW:
                yield told[1:]
            if told[0] == _Mark.ABANDONED:
                raise Abandoned

    def sum_(self, totals: torch.Tensor) -> torch.Tensor:
        """`totals`, a tensor in host memory, summed over all ranks in place."""
        if self.size > 1:
            dist.all_reduce(totals, group=self._control)
        return totals

    def mesh(self, device: torch.device) -> DeviceMesh:
        """The ranks in a row, as sharding wants them."""
        return init_device_mesh(device.type, (self.size,))

    def device(self, device: torch.device) -> torch.device:
        """This rank's own device of that type."""
        if device.type != "cuda" or self.size == 1:
            return device
        own = torch.device("cuda", self.rank)
        if own.index >= torch.cuda.device_count():
            raise ConfigError(
                f"training.ranks is {self.size}, the learner sees {torch.cuda.device_count()} CUDA devices",
                hint="set training.ranks to the number of GPUs for the learner at most",
            )
        torch.cuda.set_device(own)
        return own


@contextlib.contextmanager
def joined(count: int) -> Iterator[Ranks]:
    """The ranks that a launcher started as `count` processes; the others are told to stop when rank 0 leaves the block.

    They find each other through a file and talk over the loopback interface, so that no port is open to others. After
    an error the group is left as it is, so that the others do not fail of it before this process has said why.
    """
    if count == 1:
        yield Ranks()
        return
    size = int(os.environ.get(SIZE, "1"))
    if size != count:
        raise ConfigError(
            f"training.ranks is {count}, this learner was started as {size} processes",
            hint="start it with `sept learner` or `sept run`, which start all of its processes",
        )
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = dist.FileStore(os.environ[STORE], size)  # type: ignore[attr-defined]
    rank = int(os.environ[RANK])
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COMPUTE_DEADLINE)
    ranks = Ranks(rank, size, dist.new_group(backend="gloo", timeout=SILENCE_DEADLINE))
    yield ranks
    ranks.announce(Order.STOP)
    dist.destroy_process_group()
