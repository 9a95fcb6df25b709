"""A generator's mirror in a process of its own, without an engine.

    python -m tests.support.mirror_process STORE FOLDER POINT VERSION...

Advances to the versions one by one, checks what an engine would serve, and stops itself at the last version: before
the point "changed" while the copy's bytes change, at "held" while it reads them, at "none" not at all. Ends with one
line: how often it changed the copy, and the copy's name.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from services.tensors import RawTensor, Tensors, describe, version_digest
from services.weights import mirror as mirrors
from services.weights.chain import verify_tensors
from services.weights.client import WeightClient
from services.weights.mirror import WeightMirror
from services.weights.reader import WeightReader
from tests.support.mirrors import as_served, shared_copy

COPIES = "copies"


def store_client(store: Path, run_id: str = "run") -> WeightClient:
    """Reads the store's folder as if it were an endpoint."""
    reader = WeightReader(store, run_id)

    def answer(request: httpx.Request) -> httpx.Response:
        version, _, name = request.url.path.removeprefix("/v1/weights/").partition("/files/")
        manifest = reader.find(int(version))
        path = reader.folder_of(int(version)) / name
        if manifest is None or not path.exists():
            return httpx.Response(404, stream=httpx.ByteStream(b'{"error": "not there"}'))
        content = path.read_bytes() if name else manifest.model_dump_json().encode()
        return httpx.Response(200, stream=httpx.ByteStream(content))

    return WeightClient("http://store", deadline_s=5, transport=httpx.MockTransport(answer))


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


async def follow(store: Path, folder: Path, point: str, versions: list[int]) -> dict[str, Any]:
    changes = 0
    carry_out = mirrors._carry_out
    last = WeightReader(store, "run").manifest(versions[-1])

    def counted(*arguments: Any) -> None:
        nonlocal changes
        changes += 1
        carry_out(*arguments)

    def stopping(tensors: Tensors, entries: Any, known: Any = ()) -> None:
        if point == "changed" and entries == last.tensors:
            stop_itself()
        verify_tensors(tensors, entries, known)

    vars(mirrors).update(_carry_out=counted, verify_tensors=stopping)
    served: Mapping[str, RawTensor] = {}
    async with store_client(store) as client:
        mirror = WeightMirror(folder, client, copies=folder.parent / COPIES)
        for version in versions:
            async with mirror.advance(WeightReader(store, "run").manifest(version)) as update:
                if point == "held" and version == versions[-1]:
                    stop_itself()
                served = as_served(served, update)
                assert version_digest(describe(served)) == update.manifest.digest
                assert update.manifest.weight_version >= version
        name = shared_copy(mirror).name
        mirror.close()
    return {"changes": changes, "copy": name}


if __name__ == "__main__":
    store, folder, point, *versions = sys.argv[1:]
    print(json.dumps(asyncio.run(follow(Path(store), Path(folder), point, [int(each) for each in versions]))))  # noqa: T201
