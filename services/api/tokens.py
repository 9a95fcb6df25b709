"""Who may do what: a token has a role, and a role has routes.

    generator   pulls weights and reads the status: what a generator needs
    watch       reads everything but the weights: the page, metrics, events, rounds and answers
    steer       everything, requests to change the run too

The settings give a token for each role. `sept tokens` makes further ones and revokes any of them while the run goes on:
both stand in tokens.json of the run's folder, as SHA-256 digests, which is read again whenever it changes.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services import durable
from services.contracts import Identifier
from services.errors import ConfigError

LOOK_EVERY_S = 1.0
"""How often the file is looked at: a revoked token works for so long."""

LOGOUT_PATH = "/logout"
READING = ("GET", "HEAD")
GENERATORS_PATHS = ("/v1/status", "/readyz")
WEIGHTS = "/v1/weights/"

log = structlog.get_logger()


class Role(StrEnum):
    """What a token is for."""

    GENERATOR = "generator"
    WATCH = "watch"
    STEER = "steer"

    def may(self, method: str, path: str) -> bool:
        """Whether a request of this role is let through. A route that is added later is for steering."""
        if self is Role.STEER:
            return True
        if self is Role.GENERATOR:
            return method in READING and (path.startswith(WEIGHTS) or path in GENERATORS_PATHS)
        return path == LOGOUT_PATH or (method in READING and not path.startswith(WEIGHTS))


class NamedToken(BaseModel):
    """A token of tokens.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Identifier
    role: Role
    digest: str = Field(pattern="^[0-9a-f]{64}$")


class TokenFile(BaseModel):
    """tokens.json: what was added to the tokens of the settings, and what was revoked of both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[NamedToken, ...] = ()
    revoked: tuple[str, ...] = ()
    """Digests of tokens that the settings give and that are refused."""

    @classmethod
    def read(cls, path: Path) -> TokenFile:
        """Empty where there is no file; ConfigError when it cannot be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError) as error:
            raise ConfigError(
                f"{path} cannot be read ({type(error).__name__}): it lists the tokens of this run",
                hint="restore it, or remove it: the tokens of the settings are valid then, and no others",
            ) from error

    def write(self, path: Path) -> None:
        """Replace the file; only its owner reads it."""
        durable.write_file(path, self.model_dump_json(indent=1) + "\n", mode=0o600)


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a token was given to."""

    role: Role
    digest: str
    """Of the token; it signs the sessions of a browser that logged in with it, so they end with the token."""


class Tokens:
    """The tokens that are valid now. `given`: those of the settings, by role. `path`: tokens.json, if there is one."""

    def __init__(self, given: Mapping[Role, str], path: Path | None = None) -> None:
        self._given = tuple(Holder(role, digest_of(token)) for role, token in given.items())
        self._path = path
        self._looked_at = time.monotonic()
        self._seen = self._stamp()
        self._file = TokenFile.read(path) if path is not None else TokenFile()

    def holder_of(self, token: str) -> Holder | None:
        """Whose token this is; None when it is nobody's, or was revoked."""
        digest = digest_of(token)
        return next((holder for holder in self.holders() if hmac.compare_digest(holder.digest, digest)), None)

    def holders(self) -> Iterator[Holder]:
        """Everybody with a valid token."""
        self._refresh()
        yield from (holder for holder in self._given if holder.digest not in self._file.revoked)
        yield from (Holder(token.role, token.digest) for token in self._file.tokens)

    def _refresh(self) -> None:
        now = time.monotonic()
        if self._path is None or now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        if (stamp := self._stamp()) == self._seen:
            return
        try:
            self._file = TokenFile.read(self._path)
        except ConfigError as error:
            log.warning("tokens_not_read", reason=error.message)  # what was valid stays so, and what was revoked
        else:
            self._seen = stamp
            log.info("tokens_changed", tokens=len(self._file.tokens), revoked=len(self._file.revoked))

    def _stamp(self) -> tuple[int, int, int] | None:
        """Changes with the file's content, which is always replaced whole."""
        try:
            status = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return (status.st_ino, status.st_mtime_ns, status.st_size) if status is not None else None


def digest_of(token: str) -> str:
    """SHA-256 in hexadecimal. Tokens are random and long: nothing slower is needed to hide them."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
