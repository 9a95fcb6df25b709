"""Tokens of a run, made and revoked while it goes on: `sept tokens`. They stand in its folder, as digests."""

from __future__ import annotations

import secrets

from rich.console import Console
from rich.table import Table

from deploy import endpoints
from services.api.tokens import NamedToken, Role, TokenFile, digest_of
from services.errors import ConfigError
from services.run_folder import RunFolder

MOST = 1000
"""Tokens of a run: each request is compared with all of them."""


def add_token(run: RunFolder, name: str, role: Role) -> str:
    """A new token; nobody can read it later. ConfigError when the name is taken, or the run asks for no token."""
    held = TokenFile.read(run.tokens)
    if any(token.name == name for token in held.tokens):
        raise ConfigError(f"there is a token named {name!r} already", hint="revoke it first, or take another name")
    if len(held.tokens) >= MOST:
        raise ConfigError(f"the run has {len(held.tokens)} tokens, the limit is {MOST}", hint="revoke some")
    active = endpoints.read(run)
    if active is not None and active.token is None:
        raise ConfigError(
            "this run asks nobody for a token: services.token is not set, and only this machine reaches it",
            hint="set services.token and start the run again",
        )
    token = secrets.token_urlsafe(24)
    named = NamedToken(name=name, role=role, digest=digest_of(token))
    held.model_copy(update={"tokens": (*held.tokens, named)}).write(run.tokens)
    return token


def revoke_named(run: RunFolder, name: str) -> None:
    """Refuse the token with this name from now on; ConfigError when there is none."""
    held = TokenFile.read(run.tokens)
    left = tuple(token for token in held.tokens if token.name != name)
    if len(left) == len(held.tokens):
        names = ", ".join(token.name for token in held.tokens) or "none"
        raise ConfigError(f"there is no token named {name!r}", hint=f"there are: {names}")
    held.model_copy(update={"tokens": left}).write(run.tokens)


def revoke_given(run: RunFolder, token: str) -> None:
    """Refuse this very token from now on, also one that the settings give."""
    held, digest = TokenFile.read(run.tokens), digest_of(token)
    left = tuple(one for one in held.tokens if one.digest != digest)
    revoked = (*(one for one in held.revoked if one != digest), digest)
    held.model_copy(update={"tokens": left, "revoked": revoked}).write(run.tokens)


def show_tokens(run: RunFolder) -> None:
    """Print name and role of the tokens that were made for the run."""
    held = TokenFile.read(run.tokens)
    table = Table("name", "role")
    for token in held.tokens:
        table.add_row(token.name, token.role)
    console = Console()
    console.print(table)
    console.print(f"{len(held.revoked)} tokens of the settings are revoked" if held.revoked else "", end="")
