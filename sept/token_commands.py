"""Commands that make and revoke the tokens of a run, while it goes on too."""

from __future__ import annotations

import sys
from typing import Literal

from sept.arguments import RunDir


def add(name: str, *, role: Literal["generator", "watch", "steer"], run: RunDir = None) -> None:
    """Make a token and print it; valid within a second.

    Parameters
    ----------
    name
        To revoke it by.
    role
        generator: pulls weights. watch: reads the page and metrics. steer: everything.
    """
    from deploy.operate.run_commands import find_run
    from deploy.operate.token_commands import add_token
    from services.api.tokens import Role

    sys.stdout.write(add_token(find_run(run), name, Role(role)) + "\n")


def show(*, run: RunDir = None) -> None:
    """List the tokens that were made, by name and role."""
    from deploy.operate.run_commands import find_run
    from deploy.operate.token_commands import show_tokens

    show_tokens(find_run(run))


def revoke(name: str | None = None, *, run: RunDir = None) -> None:
    """Refuse a token from now on, and end the sessions of browsers that logged in with it.

    Parameters
    ----------
    name
        Of the token; without one the token itself is read from standard input, also one that the settings give.
    """
    from deploy.operate.run_commands import find_run
    from deploy.operate.token_commands import revoke_given, revoke_named

    if name is not None:
        revoke_named(find_run(run), name)
    else:
        revoke_given(find_run(run), sys.stdin.readline().strip())
