"""Where the ranks of one start meet, and what each must show before it may join.

Below `prefix` in the run's Redis, for the start that `nonce` names:

    current         the nonce of the newest start
    NONCE:cards     hash: rank -> what the process that is this rank says of itself, as JSON
    NONCE:store     hash: what torch keeps there (`redis_store`)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from learner.parallel.redis_store import Deadline, RedisStore
from services.errors import ConfigError, ContractError, DeadlineError, UnavailableError


class RankCard(BaseModel):
    """What a process says of itself; all but `rank` and `process` must be the same on all ranks."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rank: int
    size: int
    release: str
    settings: dict[str, str]
    """Section -> digest of what all ranks must agree on."""
    process: str
    """Host and process id, for messages."""

    @classmethod
    def read(cls, text: bytes) -> RankCard:
        """ContractError when the text is no card."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ContractError(
                f"a process that is no rank of this learner has joined: {text[:200]!r}",
                hint="something else writes to this Redis: give the run one of its own, or another password",
            ) from error

    def check(self, other: RankCard) -> None:
        """ConfigError when `other` cannot train with this rank."""
        title = f"rank {other.rank} ({other.process})"
        for name in ("release", "size"):
            theirs, ours = getattr(other, name), getattr(self, name)
            if theirs != ours:
                raise _misfit(f"{title} cannot join: its {name} is {theirs}, that of rank {self.rank} is {ours}")
        sections = self.settings.keys() | other.settings.keys()
        different = sorted(name for name in sections if self.settings.get(name) != other.settings.get(name))
        if different:
            raise _misfit(f"{title} cannot join: [{'], ['.join(different)}] differ from those of rank {self.rank}")
        if not 0 <= other.rank < self.size:
            raise _misfit(f"{title} cannot join: the ranks are 0 to {self.size - 1}")


def _misfit(message: str) -> ConfigError:
    return ConfigError(message, hint="install the same release, and give the same config, for every rank")


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """The place of one start. Errors of `client` end a wait for a Redis that is lost."""

    client: redis.Redis
    prefix: str
    nonce: str
    deadline_s: float

    def check_in(self, card: RankCard) -> None:
        """Return once all ranks are there and fit together.

        Raises:
            UnavailableError: another start is current, another process is this rank, or Redis is lost.
            ConfigError, ContractError: a rank that has come does not fit; every rank says which.
            DeadlineError: not all ranks came in time; names them.
        """
        self._check_current(card)
        key = f"{self.prefix}:{self.nonce}:cards"
        mine = card.model_dump_json().encode()
        if not self.client.hsetnx(key, str(card.rank), mine) and self.client.hget(key, str(card.rank)) != mine:
            raise UnavailableError(
                f"another process has joined as rank {card.rank} of {card.size} already",
                hint="let `sept learner` or `sept run` start the ranks, once",
            )
        deadline = Deadline(self.deadline_s)
        while len(cards := self._fitting_cards(key, card)) < card.size:
            if deadline.pause():
                missing = ", ".join(str(rank) for rank in range(card.size) if rank not in cards)
                raise DeadlineError(
                    f"ranks {missing}" if "," in missing else f"rank {missing}",
                    f"{len(cards)} of {card.size} ranks came",
                    self.deadline_s,
                    hint="its log says what it waits for or why it ended",
                )

    def _check_current(self, card: RankCard) -> None:
        current: Any = self.client.get(f"{self.prefix}:current")
        if current != self.nonce.encode():
            shown = "none" if current is None else repr(current[:8].decode(errors="replace"))
            raise UnavailableError(
                f"rank {card.rank} belongs to start {self.nonce[:8]!r}, the current one is {shown}",
                hint="start the learner again with `sept learner` or `sept run`, which give all ranks a new start",
            )

    def _fitting_cards(self, key: str, mine: RankCard) -> set[int]:
        """The ranks that have come; raises the error about one that does not fit."""
        cards: Any = self.client.hgetall(key)
        for place, text in cards.items():
            card = RankCard.read(text)
            mine.check(card)
            if place != str(card.rank).encode():
                raise ContractError(f"rank {card.rank} ({card.process}) has joined as {place[:20]!r}")
        return {int(place) for place in cards}

    def store(self) -> RedisStore:
        """The store of this start for `torch.distributed`."""
        return RedisStore(self.client, f"{self.prefix}:{self.nonce}:store", self.deadline_s)
