"""The processes (ranks) that train one model together: broadcasts, sums and orders between them.

Rank 0 is the leader: it decides, and it alone talks to Redis. The other ranks follow its orders
(`learner.training.follower`). Every collective operation starts with an order:

    rank 0                                               the other ranks
    ranks.send_order(Order.TRAIN)                        order = ranks.receive_order()
    for payload in ranks.broadcast_stream(payloads):     for payload in ranks.broadcast_stream(()):
        ...                                                  ...
    ranks.all_reduce_sum(totals)                         ranks.all_reduce_sum(totals)

Payloads are arrays of integers: nothing is pickled. With one process every exchange is a no-op.
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

from learner.parallel.launch_env import NONCE, RANK, SIZE
from learner.parallel.rendezvous import RankCard, Rendezvous
from services.errors import ConfigError, LostRankError

Payload = NDArray[np.int64]
"""[any number] integers that rank 0 broadcasts."""

ORDER_TIMEOUT = timedelta(days=1)
"""How long a rank waits for the next order. A person may pause a run for hours; rank 0's other waits have deadlines."""
COMPUTE_TIMEOUT = timedelta(minutes=30)
"""How long a collective computation waits for the slowest rank."""


class Order(IntEnum):
    """What rank 0 orders the other ranks to do."""

    TRAIN = 1
    FORWARD = 2
    WEIGHTS = 3
    BEGIN_CHECKPOINT = 4
    COMMIT_CHECKPOINT = 5
    LOAD_CHECKPOINT = 6
    STOP = 7
    ADAPTERS = 8
    CHANGES = 9
    CANARIES = 10


class _Tag(IntEnum):
    """First element of every payload of a stream."""

    ITEM = 1
    END = 2
    ABANDONED = 3


class RoundAbandoned(Exception):  # noqa: N818 - not an error: rank 0 ended the round early
    """Rank 0 ended a stream before its end."""


class Ranks:
    """This process among `size` ranks on `nodes` hosts; `Ranks()` is the only one.

    With `shard_within_node` each host holds the whole model, sharded over its own ranks.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        control: Any = None,
        *,
        nodes: int = 1,
        shard_within_node: bool = False,
    ) -> None:
        self.rank = rank
        self.size = size
        self.nodes = nodes
        self.ranks_per_node = size // nodes
        self.replicas = nodes if shard_within_node else 1
        """Copies of the model that are kept equal."""
        self._control = control
        """Process group of orders, payloads and sums: gloo, whatever the device is."""

    @property
    def is_leader(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def holds_first_replica(self) -> bool:
        """Whether this rank's shards are of the first copy of the model, which checkpoints are made of."""
        return self.rank < self.size // self.replicas

    def send_order(self, order: Order) -> None:
        """Send the order from rank 0. Does nothing on the others, which are here because they received it."""
        if self.is_leader:
            self.broadcast(np.array([order]))

    def receive_order(self) -> Order:
        """Wait for the next order of rank 0."""
        return Order(int(self.broadcast(None)[0]))

    def broadcast(self, payload: Payload | None) -> Payload:
        """Return rank 0's payload on every rank; the others pass None. LostRankError when another rank has died."""
        if self.size == 1:
            assert payload is not None
            return payload
        try:
            length = torch.tensor([0 if payload is None else payload.size])
            dist.broadcast(length, src=0, group=self._control)
            content = torch.empty(int(length), dtype=torch.int64) if payload is None else torch.from_numpy(payload)
            dist.broadcast(content, src=0, group=self._control)
        except RuntimeError as error:  # how gloo reports a peer that has died
            raise self._lost(error) from error
        received: Payload = content.numpy()
        return received

    def broadcast_stream(self, payloads: Iterable[Payload]) -> Iterator[Payload]:
        """Yield rank 0's `payloads` on every rank, each as soon as rank 0 has it; the others' argument is ignored.

        When rank 0's iterator raises, the other ranks raise RoundAbandoned after the same payload.
        """
        if self.size == 1:
            yield from payloads
        elif self.is_leader:
            try:
                for payload in payloads:
                    yield self.broadcast(np.concatenate([[_Tag.ITEM], payload]))[1:]
            except Exception:  # of any kind: the other ranks wait for the next payload
                self.broadcast(np.array([_Tag.ABANDONED]))
                raise
            self.broadcast(np.array([_Tag.END]))
        else:
            while (received := self.broadcast(None))[0] == _Tag.ITEM:
                yield received[1:]
            if received[0] == _Tag.ABANDONED:
                raise RoundAbandoned

    def all_reduce_sum(self, totals: torch.Tensor) -> torch.Tensor:
        """Sum `totals`, a tensor in host memory, over all ranks in place."""
        if self.size > 1:
            dist.all_reduce(totals, group=self._control)
        return totals

    def broadcast_bytes(self, content: torch.Tensor) -> None:
        """Fill `content`, a uint8 tensor in host memory of the same size on every rank, with rank 0's."""
        if self.size > 1:
            try:
                dist.broadcast(content, src=0, group=self._control)
            except RuntimeError as error:
                raise self._lost(error) from error

    def gather_bytes(self, own: bytes) -> list[bytes]:
        """The bytes of every rank, by rank, on rank 0; nothing on the others. Every rank calls it."""
        if self.size == 1:
            return [own]
        try:
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(own)]), group=self._control)
            if self.is_leader:
                return [own, *(self._receive(rank, int(size)) for rank, size in enumerate(sizes[1:], start=1))]
            if own:
                dist.send(torch.frombuffer(bytearray(own), dtype=torch.uint8), dst=0, group=self._control)
        except RuntimeError as error:
            raise self._lost(error) from error
        return []

    def _receive(self, rank: int, size: int) -> bytes:
        content = torch.empty(size, dtype=torch.uint8)
        if size:
            dist.recv(content, src=rank, group=self._control)
        return content.numpy().tobytes()

    def device_mesh(self, device: torch.device) -> DeviceMesh:
        """The mesh that FSDP shards over: all ranks, or with replicas (replica, shard), each row a node."""
        if self.replicas == 1:
            return init_device_mesh(device.type, (self.size,))
        return init_device_mesh(
            device.type, (self.replicas, self.size // self.replicas), mesh_dim_names=("replica", "shard")
        )

    def own_device(self, device: torch.device) -> torch.device:
        """This rank's own device of that type."""
        if device.type != "cuda" or self.size == 1:
            return device
        own = torch.device("cuda", self.rank % self.ranks_per_node)
        if own.index >= torch.cuda.device_count():
            raise ConfigError(
                f"training.ranks needs {self.ranks_per_node} CUDA devices on each host, the learner sees "
                f"{torch.cuda.device_count()} on this one",
                hint="set training.ranks to the number of GPUs for the learner at most, those of all nodes",
            )
        torch.cuda.set_device(own)
        return own

    def _lost(self, error: RuntimeError) -> LostRankError:
        return LostRankError(
            f"rank {self.rank} of {self.size} has lost another rank: {error}",
            hint="the first rank that ended says why, above or in the log of its node; the run resumes when it is "
            "started again",
        )


def own_rank(count: int) -> tuple[int, str]:
    """This process's rank among `count`, and the nonce of its start, as its launcher says; ConfigError without one."""
    size = int(os.environ.get(SIZE, "1"))
    if size != count or not {RANK, NONCE} <= os.environ.keys():
        raise ConfigError(
            f"training.ranks is {count}, this learner was started as {size} processes",
            hint="start it with `sept learner` or `sept run`, which start all of its processes",
        )
    return int(os.environ[RANK]), os.environ[NONCE]


def is_loss(error: RuntimeError) -> bool:
    """Whether a collective operation failed in the middle of a computation: another rank has died."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextlib.contextmanager
def join_ranks(
    rendezvous: Rendezvous, card: RankCard, *, nodes: int = 1, shard_within_node: bool = False
) -> Iterator[Ranks]:
    """Join the ranks of this start; rank 0 orders the others to stop when it leaves the block.

    The ranks find each other through the run's Redis, and connect over the interface that their launcher names. After
    an error the group is not destroyed: the other ranks would fail before this one has reported its error.
    """
    rendezvous.check_in(card)
    # NCCL's own monitor would ask the store from a thread, once a second; the launchers watch over the ranks here.
    os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = rendezvous.store()  # torch keeps its own half of it only: this name keeps ours alive
    dist.init_process_group(backend, store=store, rank=card.rank, world_size=card.size, timeout=COMPUTE_TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=ORDER_TIMEOUT)
    ranks = Ranks(card.rank, card.size, control, nodes=nodes, shard_within_node=shard_within_node)
    try:
        yield ranks
    except RuntimeError as error:
        if is_loss(error):
            raise ranks._lost(error) from error
        raise
    ranks.send_order(Order.STOP)
    dist.destroy_process_group()
