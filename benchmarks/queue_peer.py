"""The queue's commands from a client that does nothing else: sockets, hiredis, no contracts, no validation.

Knows the arguments of the scripts that issue, lease and complete (`services.streams.scripts`), and nothing of why.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import hiredis

from services.contracts import Rollout, Task
from services.streams import scripts
from services.streams.connection import Keys
from services.streams.rollouts import DELETE_CHUNK
from services.streams.tasks import ISSUE_CHUNK
from services.streams.wire import META, PROMPT, RESPONSE, encode_rollout, encode_task

LEASED_AT_ONCE = 16
"""Tasks that a producer leases at a time, in both contenders: the quarter of 64 that a generator fetches ahead."""
READ_AT_ONCE = 256
RECEIVE_BYTES = 1 << 16


class Connection:
    """One socket to the server; every `send` is answered by one `receive`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        if parts.password:
            self.ask("AUTH", parts.password)

    def send(self, *command: str | bytes | int) -> None:
        self._socket.sendall(hiredis.pack_command(command))  # type: ignore[arg-type]  # takes numbers, too

    def receive(self) -> Any:
        while (answer := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(RECEIVE_BYTES))
        if isinstance(answer, hiredis.ReplyError):
            raise answer
        return answer

    def ask(self, *command: str | bytes | int) -> Any:
        self.send(*command)
        return self.receive()

    def close(self) -> None:
        self._socket.close()


class BareQueue:
    """The steps of `benchmarks.queue`, producers in lockstep: all send, then all receive.

    A producer completes all that it leased in one request, as the queue does.
    """

    def __init__(self, url: str, keys: Keys, producers: int) -> None:
        self._keys = keys
        self._learner = Connection(url)
        self._producers = [Connection(url) for _ in range(producers)]
        texts = {name: getattr(scripts, name) for name in ("ISSUE", "LEASE", "COMPLETE", "IDENTIFY")}
        self._sha = {name: self._learner.ask("SCRIPT", "LOAD", text) for name, text in texts.items()}
        self._tasks: list[tuple[str, bytes, bytes]] = []
        self._rollouts: dict[bytes, list[str | bytes]] = {}
        self._entries: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (self._learner, *self._producers):
            connection.close()

    @property
    def read_back(self) -> int:
        """Rollouts that `read` has seen."""
        return len(self._entries)

    def prepare(self, tasks: Sequence[Task], rollouts: Sequence[Rollout]) -> None:
        """Encode everything; a rollout is found by the meta of its task, as that is what a lease returns."""
        keys, mark = (self._keys.tasks, self._keys.incarnation), secrets.token_hex(16)
        self._learner.ask("EVALSHA", self._sha["IDENTIFY"], 2, *keys, scripts.GROUP, mark)
        for task, rollout in zip(tasks, rollouts, strict=True):
            fields, answer = encode_task(task), encode_rollout(rollout)
            self._tasks.append((task.task_id, fields[META], fields[PROMPT]))
            self._rollouts[fields[META]] = [
                task.task_id,
                answer[META],
                answer[PROMPT],
                answer[RESPONSE],
            ]

    def issue(self) -> None:
        keys = (self._keys.tasks, self._keys.open, self._keys.incarnation)
        for start in range(0, len(self._tasks), ISSUE_CHUNK):
            args = [part for task in self._tasks[start : start + ISSUE_CHUNK] for part in task]
            self._learner.ask("EVALSHA", self._sha["ISSUE"], 3, *keys, scripts.GROUP, secrets.token_hex(16), *args)

    def lease_and_complete(self) -> None:
        while any(leases := self._lease()):
            self._complete([(c, entries) for c, entries in zip(self._producers, leases, strict=True) if entries])

    def _lease(self) -> list[list[Any]]:
        keys = (self._keys.tasks, self._keys.counters, self._keys.refused)
        for number, connection in enumerate(self._producers):
            name, lease_ms = f"generator-{number}", 600_000
            count = LEASED_AT_ONCE
            connection.send("EVALSHA", self._sha["LEASE"], 3, *keys, scripts.GROUP, name, lease_ms, "0-0", count)
        return [connection.receive()[2] for connection in self._producers]

    def _complete(self, leased: Sequence[tuple[Connection, Any]]) -> None:
        keys = (self._keys.tasks, self._keys.open, self._keys.rollouts, self._keys.refused)
        for connection, entries in leased:
            args: list[str | bytes | int] = []
            for entry_id, _, fields in entries:
                task_id, *payload = self._rollouts[fields[fields.index(META) + 1]]
                args += [entry_id, task_id, 1, *payload]
            connection.send("EVALSHA", self._sha["COMPLETE"], 4, *keys, scripts.GROUP, "generator-0", *args)
        for connection, _ in leased:
            connection.receive()

    def read(self) -> None:
        cursor: bytes = b"0"
        while answer := self._learner.ask("XREAD", "COUNT", READ_AT_ONCE, "STREAMS", self._keys.rollouts, cursor):
            self._entries += [entry_id for entry_id, _ in answer[0][1]]
            cursor = self._entries[-1]

    def delete(self) -> None:
        for start in range(0, len(self._entries), DELETE_CHUNK):
            self._learner.ask("XDEL", self._keys.rollouts, *self._entries[start : start + DELETE_CHUNK])
