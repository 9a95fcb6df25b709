"""Which grader this is: grades of different graders are not counted together."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("math-verify", "latex2sympy2-extended", "sympy")


@cache
def grader_version() -> str:
    """Twelve hexadecimal digits that change with any source of this folder and with the libraries that it calls."""
    digest = hashlib.sha256("".join(version(library) for library in LIBRARIES).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
