"""How the hosts of one learner meet in Redis, and notice that one of them is lost.

Every host ("node") has one launcher that starts its ranks. The launcher of node 0 leads. A start is one attempt of all
nodes to train together; its nonce names the keys of that start alone, so nothing of an earlier one can be mistaken for
it. All values are JSON or numbers. Below `Keys.ranks`:

    node:K         the card of the launcher that holds place K; expires when its launcher no longer renews it
    asking:K       the same card, while that launcher waits for a start; expires sooner
    answer:ID      node 0's answer to the launcher that drew this id: the start, or why it may not take part
    current        the nonce of the newest start
    NONCE:beats    hash: node -> a number that its launcher raises every second
    NONCE:stop     which node was asked to stop, and so asks node 0 to
    NONCE:end      how the start ended on the node where it ended first
    NONCE:cards, NONCE:store    the ranks' own (learner.parallel)
"""

from __future__ import annotations

import secrets
import time
from typing import Any, NamedTuple, TypeVar

import redis
import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from services.errors import ConfigError, ContractError, DeadlineError, UnavailableError
from services.streams.connection import Keys

BEAT_EVERY_S = 1.0
LOST_AFTER_BEATS = 8
"""A node whose number has not grown for so many beats of another node is lost. Beats are counted, not seconds, so a
Redis that is away for a while makes nobody lost."""
CLAIM_S = 6.0
"""A place is free again this long after its launcher was killed."""
ASKING_S = 2.0
"""Node 0 counts a node as there for so long after it last asked."""
KEPT_S = 3600
"""How long the keys of a start outlive its last beat, and answers the question."""
POLL_S = 0.2

log = structlog.get_logger()

M = TypeVar("M", bound="_Message")


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def read(cls: type[M], text: bytes, what: str) -> M:
        """ContractError when the text is no such message."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ContractError(
                f"{what} is not what this release writes: {text[:200]!r}",
                hint="use the same release of sept on every node, and a Redis of the run's own",
            ) from error


class NodeCard(_Message):
    """What a launcher says of itself. All but id, node, host, pid and address must be the same on every node."""

    id: str
    """Drawn anew for every start."""
    node: int
    nodes: int
    ranks: int
    """Of the learner in all."""
    release: str
    settings: dict[str, str]
    """Section -> digest of what all ranks must agree on."""
    host: str
    pid: int
    address: str
    """By which other nodes may reach this one."""

    @property
    def title(self) -> str:
        return f"node {self.node} ({self.host}, process {self.pid})"

    def why_not_with(self, other: NodeCard) -> str:
        """What `other` has that does not go with this card; empty when they can train together."""
        for name in ("release", "nodes", "ranks"):
            theirs, ours = getattr(other, name), getattr(self, name)
            if theirs != ours:
                return f"its {name} is {theirs}, that of {self.title} is {ours}"
        different = sorted(
            section
            for section in self.settings.keys() | other.settings.keys()
            if self.settings.get(section) != other.settings.get(section)
        )
        return f"its settings in [{'], ['.join(different)}] are not those of {self.title}" if different else ""


class Start(_Message):
    """One attempt of all nodes to train together."""

    nonce: str
    addresses: list[str]
    """Of each node."""


class _Answer(_Message):
    start: Start | None = None
    refused: str = ""


class _End(_Message):
    node: int
    code: int
    reason: str


class Ending(NamedTuple):
    """Why a start is over on this node, though its own ranks may still run."""

    reason: str
    code: int | None
    """Exit code of the node that ended; None when it is lost or took part in a newer start."""


class NodeMeeting:
    """Waits until all nodes are there, then gives each the same start.

    start = NodeMeeting(client, Keys("run-7"), card, deadline_s=600).join()
    """

    def __init__(self, client: redis.Redis, keys: Keys, card: NodeCard, *, deadline_s: float) -> None:
        self._client = client
        self._base = keys.ranks
        self._card = card
        self._deadline_s = deadline_s
        self._taken_since: float | None = None
        self._missing: dict[int, str] = dict.fromkeys(range(1, card.nodes), "")
        """Nodes that node 0 waits for -> why it refused the one that came; empty when none came."""

    def join(self) -> Start:
        """The start that this node takes part in.

        Raises:
            UnavailableError: another launcher holds this node's place.
            ConfigError: node 0 refused this node, with its reason.
            DeadlineError: not all nodes came in time; names them.
        """
        give_up_at = time.monotonic() + self._deadline_s
        while time.monotonic() < give_up_at:
            if self._claim():
                start = self._lead() if self._card.node == 0 else self._ask()
                if start is not None:
                    return start
            time.sleep(POLL_S)
        raise DeadlineError(*self._who_did_not_come(), self._deadline_s, hint="start `sept learner` on every node")

    def _claim(self) -> bool:
        """Whether this launcher holds its place, newly or still. The only node has nobody to take it from."""
        if self._card.nodes == 1:
            return True
        key, mine = f"{self._base}:node:{self._card.node}", self._card.model_dump_json().encode()
        if self._client.set(key, mine, nx=True, px=round(CLAIM_S * 1000)):
            return True
        held: Any = self._client.get(key)
        if held == mine:
            self._client.pexpire(key, round(CLAIM_S * 1000))
            return True
        self._taken_since = self._taken_since or time.monotonic()
        if held is not None and time.monotonic() - self._taken_since > 2 * CLAIM_S:  # not of a launcher that was killed
            try:
                holder = NodeCard.read(held, "the card there").title
            except ContractError as error:
                holder = error.message
            raise UnavailableError(
                f"node {self._card.node} of {self._card.nodes} is taken: {holder}",
                hint="give every node a --node of its own, from 0 on, and stop the other one",
            )
        return False

    def _lead(self) -> Start | None:
        """On node 0: once all others are there and fit, the start, which they are told."""
        cards = [self._card]
        for node in self._missing:
            text: Any = self._client.get(f"{self._base}:asking:{node}")
            card = None if text is None else self._fitting(node, text)
            if card is None:
                return None
            cards.append(card)
        start = Start(nonce=secrets.token_hex(16), addresses=[card.address for card in cards])
        pipe: Any = self._client.pipeline(transaction=True)
        pipe.set(f"{self._base}:current", start.nonce)
        for card in cards[1:]:
            pipe.set(f"{self._base}:answer:{card.id}", _Answer(start=start).model_dump_json(), ex=KEPT_S)
        pipe.execute()
        return start

    def _fitting(self, node: int, text: bytes) -> NodeCard | None:
        """The card in that place if it can take part; else its launcher is told why not, and others may come."""
        try:
            card = NodeCard.read(text, f"the card of node {node}")
        except ContractError as error:
            reason = error.message
        else:
            reason = f"it says that it is node {card.node}" if card.node != node else self._card.why_not_with(card)
            if not reason:
                return card
            self._client.set(
                f"{self._base}:answer:{card.id}", _Answer(refused=reason).model_dump_json(), ex=KEPT_S, nx=True
            )
        if self._missing[node] != reason:
            log.warning("node_refused", node=node, reason=reason)
            self._missing[node] = reason
        return None

    def _ask(self) -> Start | None:
        """On the other nodes: node 0's answer, once it is there."""
        asking = f"{self._base}:asking:{self._card.node}"
        text: Any = self._client.get(f"{self._base}:answer:{self._card.id}")
        if text is None:
            self._client.set(asking, self._card.model_dump_json(), px=round(ASKING_S * 1000))
            return None
        self._client.delete(asking)
        answer = _Answer.read(text, "the answer of node 0")
        if answer.start is None:
            raise ConfigError(
                f"node {self._card.node} may not take part: {answer.refused}",
                hint="install the same release, and give the same config and flags, on every node",
            )
        return answer.start

    def _who_did_not_come(self) -> tuple[str, str]:
        if self._card.node != 0:
            return "node 0", f"it did not lead node {self._card.node} of {self._card.nodes} into a start"
        present = [node for node in self._missing if self._client.exists(f"{self._base}:asking:{node}")]
        missing = [node for node in self._missing if node not in present]
        refused = [f"node {node} was refused: {why}" for node, why in self._missing.items() if why]
        nodes = ", ".join(f"node {node}" for node in missing) or "the other nodes"
        return nodes, "; ".join(refused) or f"of {self._card.nodes} nodes these did not come"


class Membership:
    """This node's part in a start, from its launcher: it lives, it may ask for a stop, it may end.

    `beat` once every BEAT_EVERY_S.
    """

    def __init__(self, client: redis.Redis, keys: Keys, card: NodeCard, start: Start) -> None:
        self._client = client
        self._base = keys.ranks
        self._of_start = f"{keys.ranks}:{start.nonce}"
        self._card = card
        self._start = start
        self._place = f"{keys.ranks}:node:{card.node}"
        self._mine = card.model_dump_json().encode()
        self._seen: dict[int, tuple[int, int]] = dict.fromkeys(set(range(card.nodes)) - {card.node}, (0, 0))
        """Other node -> its last number, and for how many of our beats it has not grown."""
        self.stop_requested = False
        """Whether a node has asked for an orderly stop."""

    def beat(self) -> Ending | None:
        """Tell the others that this node lives; what has ended the start, if anything has."""
        pipe: Any = self._client.pipeline(transaction=False)
        pipe.hincrby(f"{self._of_start}:beats", str(self._card.node), 1)
        for name in ("beats", "store", "cards"):
            pipe.expire(f"{self._of_start}:{name}", KEPT_S)
        pipe.set(self._place, self._mine, px=round(CLAIM_S * 1000), nx=True)
        pipe.pexpire(self._place, round(CLAIM_S * 1000))
        pipe.hgetall(f"{self._of_start}:beats")
        pipe.mget(f"{self._base}:current", f"{self._of_start}:end", f"{self._of_start}:stop", self._place)
        *_, beats, (current, end, stop, holder) = pipe.execute()
        self.stop_requested = stop is not None
        if end is not None:
            ended = _End.read(end, "how the start ended")
            return Ending(f"node {ended.node} ended: {ended.reason}", ended.code)
        if current not in (None, self._start.nonce.encode()):
            return Ending("node 0 has begun a newer start", None)
        if holder != self._mine and self._seen:
            return Ending(f"another launcher has taken the place of node {self._card.node}", None)
        return self._silent(beats)

    def _silent(self, beats: dict[bytes, bytes]) -> Ending | None:
        for node, (number, unchanged) in self._seen.items():
            found = int(beats.get(str(node).encode(), b"0"))
            self._seen[node] = (found, 0 if found != number else unchanged + 1)
            if self._seen[node][1] >= LOST_AFTER_BEATS:
                seconds = LOST_AFTER_BEATS * BEAT_EVERY_S
                return Ending(f"node {node} at {self._start.addresses[node]} is silent for {seconds:.0f} s: lost", None)
        return None

    def request_stop(self) -> None:
        """Ask node 0, which alone can, to stop the learner in order."""
        self._client.set(f"{self._of_start}:stop", self._card.node, ex=KEPT_S)

    def end(self, code: int, reason: str) -> None:
        """Tell the others that this node's ranks have ended, unless another node has done so before; free its place."""
        end = _End(node=self._card.node, code=code, reason=reason)
        self._client.set(f"{self._of_start}:end", end.model_dump_json(), ex=KEPT_S, nx=True)
        self.leave()

    def leave(self) -> None:
        """Free this node's place, if it is still this launcher's."""
        if self._client.get(self._place) == self._mine:
            self._client.delete(self._place)
