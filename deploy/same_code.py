"""How a process of this project starts another one: with the same interpreter and the same code.

Where a person starts `sept`, and what PYTHONPATH names, must not change which code the parts of a run execute.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

PACKAGES = ("services", "learner", "generator", "deploy", "studies", "sept")

ROOT = Path(__file__).resolve().parents[1]
"""The folder of the packages that run now: a checkout, or the site-packages of an installation."""

SAFE_PATH = "-P"
"""Python's option that keeps the working directory out of sys.path."""


def sept_command(*arguments: str) -> tuple[str, ...]:
    """The command line of `sept ARGUMENTS` in a process of its own; its environment is that of `with_same_code`."""
    return (sys.executable, SAFE_PATH, "-m", "sept", *arguments)


def with_same_code(environ: Mapping[str, str], *, root: Path = ROOT) -> dict[str, str]:
    """The environment for a process, and all that it starts, that imports these packages from where they run now.

    A checkout's folder goes first into PYTHONPATH. An installation is found by the interpreter itself.
    """
    given = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    found = [] if root.name in ("site-packages", "dist-packages") else [str(root)]
    found += [entry for entry in given if entry not in found]
    return {**environ, "PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": os.pathsep.join(found)} if found else {})


def code_digest(root: Path = ROOT) -> str:
    """BLAKE3 of sept's own source on this node."""
    hasher = blake3()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        hasher.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return hasher.hexdigest()


def own_release() -> str:
    """The version with the start of `code_digest`, as "0.1.0+8c1f0d2ab34e": the same for all that train together."""
    return f"{importlib.metadata.version('sept')}+{code_digest()[:12]}"
