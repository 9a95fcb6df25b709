"""Encoding of tasks and rollouts as stream entries.

An entry is {b"meta": JSON without the token ids, b"prompt": int32 LE, b"response": int32 LE (rollouts only)}, so token
ids, nearly all of the bytes, are never printed as decimal text. The JSON ends with a checksum of the whole entry: Redis
keeps entries in a file without one. Decoding trusts no byte: anything malformed raises ContractError before memory is
spent on it.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json

from services.contracts import MAX_TOKENS, TOKEN_DTYPE, Contract, Rollout, Task
from services.errors import ContractError

Fields = Mapping[bytes, bytes]
"""One stream entry."""

AHEAD_S = 86_400.0
"""An entry's id is the server's time; one that is ahead by more than this was not drawn by the server."""

MAX_META_BYTES = 1 << 20
META, PROMPT, RESPONSE = b"meta", b"prompt", b"response"
CHECKSUM = "checksum"
SEAL = b',"%b":' % CHECKSUM.encode()

C = TypeVar("C", bound=Contract)


def encode_task(task: Task) -> dict[bytes, bytes]:
    """Fields of a task: meta and prompt."""
    return _sealed({META: _meta(task, {"prompt_tokens"}), PROMPT: _raw(task.prompt_tokens)})


def decode_task(fields: Fields) -> Task:
    """Raises ContractError for anything that `encode_task` could not have made."""
    task = _decode(Task, fields, {PROMPT: "prompt_tokens"})
    _check_finite("task", temperature=task.temperature)
    _check_seal("task", fields)
    return task


def encode_rollout(rollout: Rollout) -> dict[bytes, bytes]:
    """Fields of a rollout: meta, prompt and response."""
    fields = {
        META: _meta(rollout, {"prompt_tokens", "response_tokens"}),
        PROMPT: _raw(rollout.prompt_tokens),
        RESPONSE: _raw(rollout.response_tokens),
    }
    return _sealed(fields)


def decode_rollout(fields: Fields) -> Rollout:
    """Raises ContractError for anything that `encode_rollout` could not have made."""
    rollout = _decode(Rollout, fields, {PROMPT: "prompt_tokens", RESPONSE: "response_tokens"})
    _check_finite(
        "rollout",
        temperature=rollout.temperature,
        queued_s=rollout.queued_s,
        generate_s=rollout.generate_s,
    )
    _check_seal("rollout", fields)
    return rollout


def entered_at(entry_id: bytes) -> float:
    """When the entry was added to its stream: Unix seconds by Redis' clock."""
    return int(entry_id.split(b"-")[0]) / 1000


def is_of_the_future(entry_id: bytes) -> bool:
    """Whether no server can have drawn this id by now."""
    return entered_at(entry_id) > time.time() + AHEAD_S


def claimed_task_id(fields: Fields) -> str:
    """The task id that an unreadable entry claims to have, or "": for logs, as it may be false."""
    try:
        claimed = from_json(fields.get(META, b"")[:MAX_META_BYTES])
    except ValueError:
        return ""
    task_id = claimed.get("task_id") if isinstance(claimed, dict) else None
    return task_id if isinstance(task_id, str) and len(task_id) <= 128 else ""


def _meta(contract: Contract, left_out: set[str]) -> bytes:
    return contract.model_dump_json(exclude=left_out).encode()


def _sealed(fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The fields, the JSON with their checksum as its last member."""
    return fields | {META: b"%b%b%d}" % (fields[META][:-1], SEAL, _checksum(fields[META][:-1], fields))}


def _check_seal(name: str, fields: Fields) -> None:
    body, _, seal = fields[META].rpartition(SEAL)
    if seal != b"%d}" % _checksum(body, fields):
        raise ContractError(f"{name} entry is not what was written: its checksum is another")


def _checksum(body: bytes, fields: Fields) -> int:
    """CRC-32 of the JSON without its end and of the arrays: against damage, not against malice."""
    return zlib.crc32(fields.get(RESPONSE, b""), zlib.crc32(fields[PROMPT], zlib.crc32(body)))


def _raw(tokens: NDArray[np.int32]) -> bytes:
    return tokens.astype(TOKEN_DTYPE, copy=False).tobytes()


def _decode(contract: type[C], fields: Fields, arrays: Mapping[bytes, str]) -> C:
    name = contract.__name__.lower()
    if fields.keys() != {META, *arrays}:
        raise ContractError(f"{name} entry has fields {_shown(fields)}, expected {_shown([META, *arrays])}")
    if len(fields[META]) > MAX_META_BYTES:
        raise ContractError(f"{name} meta has {len(fields[META])} bytes, the limit is {MAX_META_BYTES}")
    for key in arrays:
        if len(fields[key]) > MAX_TOKENS * TOKEN_DTYPE.itemsize:
            raise ContractError(f"{name} {key.decode()} has {len(fields[key])} bytes, more than {MAX_TOKENS} tokens")
    try:
        meta = from_json(fields[META], allow_inf_nan=False)
    except ValueError as error:
        raise ContractError(f"{name} meta is not JSON: {error}") from error
    if not isinstance(meta, dict) or not meta.keys().isdisjoint(arrays.values()):
        raise ContractError(f"{name} meta must be an object without token ids, got {type(meta).__name__}")
    # what follows names the fault of an entry that nobody has written so; `_check_seal` the rest
    meta.pop(CHECKSUM, None)
    for key, field in arrays.items():
        meta[field] = fields[key]
    try:
        return contract.model_validate(meta)
    except ValidationError as error:
        raise ContractError(f"{name} is malformed: {_first_fault(error)}") from error


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(step) for step in fault["loc"]) or "as a whole"
    return f"{where[:200]}: {fault['msg'][:500]}"


def _check_finite(name: str, **values: float) -> None:
    for field, value in values.items():
        if not math.isfinite(value):
            raise ContractError(f"{name} is malformed: {field} is {value}")


def _shown(names: Any) -> str:
    shown = sorted(bytes(name[:32]).decode(errors="replace") for name in names)
    return ", ".join(shown[:8]) or "none"
