"""The learner's reader of rollouts: a cursor over a stream that shrinks only when a checkpoint is durable.

The same rollout can come more than once (after `rewind`, or from a task that was issued again). The caller removes
duplicates by `Rollout.rollout_id`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import redis
import structlog

from services.contracts import Rollout
from services.errors import ContractError
from services.streams import scripts
from services.streams.connection import Keys, block_ms
from services.streams.dead_letters import MAX_DEAD_LETTERS, letter_fields
from services.streams.fence import UNFENCED, Fence
from services.streams.key_check import restore_keys
from services.streams.wire import Fields, decode_rollout, encode_rollout, is_of_the_future

DELETE_CHUNK = 1000
"""Entry ids per XDEL."""

log = structlog.get_logger()


class RolloutReader:
    """Reads each rollout once per pass, from the oldest in Redis."""

    def __init__(self, client: redis.Redis, keys: Keys, fence: Fence = UNFENCED) -> None:
        self._client = client
        self._keys = keys
        self._cursor: bytes = b"0"
        self._bury = fence.script(client, keys, scripts.BURY)
        self._delete = fence.script(client, keys, scripts.DELETE)

    def read(self, block_s: float, count: int = 256) -> list[tuple[bytes, Rollout]]:
        """Up to `count` pairs of entry id and rollout, waiting at most `block_s` for the first.

        Entries that cannot be read become dead letters on the way.
        """
        give_up_at = time.monotonic() + block_s
        while True:
            wait_s = give_up_at - time.monotonic()
            block = block_ms(wait_s) if wait_s > 0 else None
            streams: Any = self._client.xread({self._keys.rollouts: self._cursor}, count=count, block=block)
            entries = cast("list[tuple[bytes, Fields]]", streams[0][1]) if streams else []
            if entries and is_of_the_future(entries[-1][0]):
                restore_keys(self._client, self._keys)  # behind such an entry no generator can hand in another
                self.rewind()
                continue
            rollouts = [
                (entry_id, rollout) for entry_id, fields in entries if (rollout := self._decode(entry_id, fields))
            ]
            if entries:
                self._cursor = entries[-1][0]
            if rollouts or (not entries and time.monotonic() >= give_up_at):
                return rollouts

    def delete(self, entry_ids: Sequence[bytes]) -> None:
        """Deletes rollouts whose training a durable checkpoint contains."""
        for start in range(0, len(entry_ids), DELETE_CHUNK):
            self._delete([self._keys.rollouts], entry_ids[start : start + DELETE_CHUNK])

    def bury(self, entry_id: bytes, rollout: Rollout, reason: str) -> None:
        """Turns a rollout that does not answer its task into a dead letter with its generator's name."""
        self._to_dead_letters(entry_id, encode_rollout(rollout), reason, rollout.generator_id)

    def rewind(self) -> None:
        """The next `read` starts again with the oldest rollout in Redis."""
        self._cursor = b"0"

    def _decode(self, entry_id: bytes, fields: Fields) -> Rollout | None:
        try:
            return decode_rollout(fields)
        except ContractError as error:
            self._to_dead_letters(entry_id, fields, error.message, "")
            return None

    def _to_dead_letters(self, entry_id: bytes, fields: Fields, reason: str, generator_id: str) -> None:
        log.warning("rollout_rejected", entry_id=entry_id.decode(), generator_id=generator_id, reason=reason)
        letter = letter_fields("rollouts", entry_id, fields, reason, generator_id)
        self._bury([self._keys.rollouts, self._keys.dead_letters], [entry_id, MAX_DEAD_LETTERS, *letter])
