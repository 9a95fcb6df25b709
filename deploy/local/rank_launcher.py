"""Starts the ranks of a learner on this host, and ends when the learner ends: to a supervisor they are one part.

All of them end when one dies or the launcher does. With several nodes each has a launcher. They meet in Redis, watch
each other's heartbeats there (`services.streams.nodes`), and when a node is lost the others end their ranks and wait
for it, or for another host in its place; then all start again, from the newest checkpoint.

torchrun does the same, but with an unauthenticated store on every interface whose entries it unpickles, with its own
code in place of the exit code, and with processes that outlive it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

import structlog

from deploy import exit_codes
from deploy.local.interfaces import interface_of, own_address_towards
from deploy.local.processes import die_with_parent
from deploy.same_code import own_release, sept_command, with_same_code
from deploy.settings import Settings, digests_for_ranks, redis_url
from learner.monitoring.heartbeat import LEARNER_ID
from learner.parallel.launch_env import NONCE, RANK, SIZE
from services.errors import UnavailableError
from services.net import LOOPBACK, hostname_of
from services.streams.connection import Keys, connect
from services.streams.events import EventLog
from services.streams.nodes import BEAT_EVERY_S, LOST_AFTER_BEATS, Ending, Membership, NodeCard, NodeMeeting, Start

BEAT_DEADLINE_S = 5.0
"""For Redis to answer one beat; the ranks' own waits decide how long it may be away."""
EXPLAINED_S = (LOST_AFTER_BEATS + 2) * BEAT_EVERY_S
"""Within this time a rank that lost another one learns which node was lost, or which rank here ended first."""

log = structlog.get_logger()


class Over(NamedTuple):
    """How a start ended here."""

    code: int
    reason: str
    again: bool = False
    """Whether this node was well, and another one ended or was lost: it waits for the next start."""


def is_rank() -> bool:
    """Whether this process was started by `start_ranks`."""
    return RANK in os.environ


def start_ranks(command: Sequence[str], settings: Settings, *, run_id: str, node: int = 0) -> int:
    """Run `sept COMMAND` as this node's share of training.ranks; the exit code of the first rank that failed, else 0.

    A signal's code is 128 + its number. SIGTERM and SIGINT go to rank 0, wherever it is, which the others follow. With
    several nodes it also returns the code of a node that stopped in order, or failed for good.
    """
    keys, url, startup_s = Keys(run_id), redis_url(settings), settings.deadlines.startup_s
    while True:
        card = _card(settings, node, url)
        with connect(url, deadline_s=startup_s) as client:
            start = NodeMeeting(client, keys, card, deadline_s=startup_s).join()
        with connect(url, deadline_s=BEAT_DEADLINE_S) as client:
            membership = Membership(client, keys, card, start)
            log.info("ranks_starting", node=node, nodes=card.nodes, ranks=settings.training.ranks_per_node)
            with _started(command, settings, node, start, card) as children:
                over = _Watch(children, membership, card).until_over()
            with contextlib.suppress(UnavailableError):  # then the others hear nothing and count this node as lost
                membership.leave() if over.again else membership.end(over.code, over.reason)
                if over.again and node == 0:  # rank 0 was killed and could not say so
                    EventLog(client, keys).append(LEARNER_ID, "failed", message=over.reason)
        if not over.again:
            return over.code
        log.warning("learner_starts_again", reason=over.reason)


def _card(settings: Settings, node: int, url: str) -> NodeCard:
    return NodeCard(
        id=secrets.token_hex(16),
        node=node,
        nodes=settings.training.nodes,
        ranks=settings.training.ranks,
        release=own_release(),
        settings=digests_for_ranks(settings),
        host=socket.gethostname(),
        pid=os.getpid(),
        address=own_address_towards([hostname_of(url)]),
    )


@contextlib.contextmanager
def _started(
    command: Sequence[str], settings: Settings, node: int, start: Start, card: NodeCard
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """This node's ranks; they are gone after the block."""
    launcher, count = os.getpid(), settings.training.ranks_per_node
    shared = {SIZE: str(settings.training.ranks), NONCE: start.nonce, "OMP_NUM_THREADS": str(_threads(count))}
    children = [
        subprocess.Popen(
            sept_command(*command),
            env={**_interfaces(card, start), **with_same_code(os.environ), **shared, RANK: str(node * count + local)},
            preexec_fn=lambda: die_with_parent(launcher, signal.SIGKILL),
        )
        for local in range(count)
    ]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.wait()


def _interfaces(card: NodeCard, start: Start) -> dict[str, str]:
    """Over which interface the ranks connect; a variable that is set already wins, and no variable lets them guess."""
    others = start.addresses[: card.node] + start.addresses[card.node + 1 :]
    name = interface_of(LOOPBACK if card.nodes == 1 else own_address_towards([card.address, *others]))
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name} if name else {}


@dataclass(slots=True)
class _Watch:
    """Waits for the end of a start on this node: of its ranks, of another node, or as it is asked to stop."""

    children: Sequence[subprocess.Popen[bytes]]
    membership: Membership
    card: NodeCard
    _stop: signal.Signals | None = None
    _stop_passed_on: bool = False
    _leader_ended_at: float | None = None
    _codes: dict[int, int] = field(default_factory=dict)
    """Rank of those that ended -> exit code."""

    def until_over(self) -> Over:
        """How it ended; the ranks may still run."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        handles = {os.pidfd_open(child.pid): index for index, child in enumerate(self.children)}
        try:
            while True:
                ended, _, _ = select.select(list(handles), [], [], BEAT_EVERY_S)
                for handle in ended:
                    os.close(handle)
                    self._note_end(handles.pop(handle))
                if (over := self._over()) is not None:
                    return over
                self._pass_on_stop()
        finally:
            for handle in handles:
                os.close(handle)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note_end(self, index: int) -> None:
        code = self.children[index].wait()
        self._codes[self.card.node * len(self.children) + index] = code if code >= 0 else 128 - code

    def _over(self) -> Over | None:
        failed = {rank: code for rank, code in self._codes.items() if code not in (exit_codes.OK, exit_codes.LOST_RANK)}
        if failed:
            rank, code = next(iter(failed.items()))
            return Over(code, f"rank {rank} has ended with {exit_codes.in_words(code)}")
        ending = self._beat()
        if exit_codes.LOST_RANK in self._codes.values():
            return self._explain_lost_rank()
        if len(self._codes) == len(self.children):  # all ended well, as rank 0 ordered
            return Over(exit_codes.OK if self.card.node == 0 else self._code_of_leader(), "the learner is done")
        return None if ending is None or self._may_still_end_well(ending) else _because_of(ending)

    def _may_still_end_well(self, ending: Ending) -> bool:
        """Whether the learner has ended in order on another node: then the ranks here are about to, as rank 0 said."""
        self._leader_ended_at = self._leader_ended_at or time.monotonic()
        in_order = ending.code in (exit_codes.OK, exit_codes.STOPPED)
        return in_order and time.monotonic() - self._leader_ended_at < EXPLAINED_S

    def _explain_lost_rank(self) -> Over | None:
        """A rank here lost another one: the first that ended is here and known soon, or on another node."""
        give_up_at = time.monotonic() + EXPLAINED_S
        while time.monotonic() < give_up_at:
            for index, child in enumerate(self.children):
                if child.poll() is not None:
                    self._note_end(index)
            if any(code not in (exit_codes.OK, exit_codes.LOST_RANK) for code in self._codes.values()):
                return None  # the next look says so
            ending = self._beat()
            if ending is not None:
                return _because_of(ending)
            time.sleep(BEAT_EVERY_S)
        return Over(exit_codes.LOST_RANK, "a rank has lost another one, and none has ended: see the network")

    def _code_of_leader(self) -> int:
        """On the other nodes: how the learner ended, as node 0 says once rank 0 has ended."""
        give_up_at = time.monotonic() + EXPLAINED_S
        while time.monotonic() < give_up_at:
            ending = self._beat()
            if ending is not None and ending.code is not None:
                return ending.code
            time.sleep(BEAT_EVERY_S)
        return exit_codes.OK

    def _beat(self) -> Ending | None:
        try:
            return self.membership.beat()
        except UnavailableError as error:  # the ranks decide how long Redis may be away
            log.warning("node_beat_not_sent", error=error.message)
            return None

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stop = signal.Signals(number)
        if self.card.node == 0:
            self.children[0].send_signal(number)

    def _pass_on_stop(self) -> None:
        """Rank 0 stops the learner, whichever node is asked to; once."""
        if self._stop_passed_on:
            return
        if self.card.node == 0 and self.membership.stop_requested and self._stop is None:
            log.info("stop_requested_by_another_node")
            self.children[0].send_signal(signal.SIGTERM)
            self._stop_passed_on = True
        elif self.card.node != 0 and self._stop is not None:
            with contextlib.suppress(UnavailableError):  # tried again a second later
                self.membership.request_stop()
                self._stop_passed_on = True


def _because_of(ending: Ending) -> Over:
    """Another node's ending: one that would end in the same way again is this node's, too."""
    if ending.code is None or ending.code not in (*exit_codes.PERMANENT, exit_codes.OK, exit_codes.STOPPED):
        return Over(exit_codes.LOST_RANK, ending.reason, again=True)
    return Over(ending.code, ending.reason)


def _threads(count: int) -> int:
    """Threads on a CPU for each of `count` processes."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, (int(given) if given.isdigit() else len(os.sched_getaffinity(0))) // count)
