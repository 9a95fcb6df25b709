"""A manifest and the small file that leads to its version, in one answer of the weight-sync endpoint."""

from __future__ import annotations

import struct

from services.errors import ContractError

MEDIA_TYPE = "application/vnd.sept.version"
"""Of such an answer; a client that names it in Accept may get one from the long poll."""

LENGTH = struct.Struct("<Q")
"""Of the manifest, which comes next; the rest is the file."""


def bundle(manifest: bytes, change: bytes) -> bytes:
    """The answer's body."""
    return LENGTH.pack(len(manifest)) + manifest + change


def unbundle(body: bytes) -> tuple[bytes, bytes]:
    """(Manifest, file); ContractError when the body is no such answer."""
    length = LENGTH.unpack_from(body)[0] if len(body) >= LENGTH.size else len(body)
    if LENGTH.size + length > len(body):
        raise ContractError(f"an answer of {len(body)} bytes cannot hold a manifest of {length}")
    return body[LENGTH.size : LENGTH.size + length], body[LENGTH.size + length :]
