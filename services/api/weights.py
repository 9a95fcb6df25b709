"""Routes of weight sync: manifests and files of the published versions. Only small files are read into memory."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse

from services.api.change_notifier import ChangeNotifier
from services.api.error_responses import may_answer
from services.api.version_watch import VersionWatch
from services.api.weight_memory import FILE_TYPE, IMMUTABLE, FromMemory, Held, WeightMemory
from services.contracts import Digest, FileEntry, FileName, WeightManifest
from services.errors import VersionNotFoundError
from services.weights.bundle import MEDIA_TYPE
from services.weights.reader import MAX_VERSION, WeightReader

MAX_POLL_S = 60.0
"""Longest a request for the latest version may wait."""

REVALIDATE = "no-cache"

Version = Annotated[int, PathParameter(ge=0, le=MAX_VERSION, description="weight version")]
IfNoneMatch = Annotated[str | None, Header(description="ETag of what the caller holds")]


class WeightFileResponse(FileResponse):
    """A whole file is sent by sendfile (`services.sendfile`); ranges are read in pieces of 1 MiB instead of 64 KiB."""

    chunk_size = 1 << 20


def weights_router(memory: WeightMemory, store: WeightReader, notifier: ChangeNotifier) -> APIRouter:
    """The /v1/weights routes over one run's versions, which are in `store`."""
    router = APIRouter(prefix="/v1/weights", tags=["weights"])
    watch = VersionWatch(memory, notifier)

    @router.get(
        "/latest",
        response_model=WeightManifest,
        responses={
            200: {
                "content": {MEDIA_TYPE: {}},
                "description": "The manifest, or with it the small file too",
            },
            204: {"description": "Still the same at timeout_s"},
            **may_answer(409, 422),
        },
    )
    async def latest(
        after: Annotated[int | None, Query(ge=0, le=MAX_VERSION, description="version the caller holds")] = None,
        digest: Annotated[Digest | None, Query(description="its digest; unset: any content counts as held")] = None,
        timeout_s: Annotated[float, Query(ge=0, le=MAX_POLL_S, allow_inf_nan=False)] = 30.0,
        accept: Annotated[str, Header(description=f"{MEDIA_TYPE}: may come with the file")] = "*/*",
    ) -> Response:
        """The newest version's manifest; waits while the caller holds exactly that version.

        A caller that accepts it, and holds the version before, also gets the delta in the same answer if that is small.
        """
        give_up_at = time.monotonic() + timeout_s
        while True:
            held = await memory.newest()
            if held is not None and not _is_held(held.manifest, after, digest):
                bundled = await memory.bundled(held, after, digest) if MEDIA_TYPE in accept else None
                if bundled is not None:
                    return FromMemory(memory, bundled, headers=_headers(held), media_type=MEDIA_TYPE)
                return _answer(held)
            remaining_s = give_up_at - time.monotonic()
            if remaining_s <= 0 or notifier.closed:
                return Response(status_code=204)
            await watch.until_other(held, remaining_s)

    @router.get(
        "/{version}",
        response_model=WeightManifest,
        responses={304: {"description": "The caller holds it"}, **may_answer(404, 409, 422)},
    )
    async def manifest(version: Version, if_none_match: IfNoneMatch = None) -> Response:
        """A version's manifest."""
        held = await memory.version(version)
        if if_none_match == _etag(held.manifest.digest):
            return Response(status_code=304, headers={"ETag": if_none_match})
        return _answer(held)

    @router.get(
        "/{version}/files/{name:path}",
        response_class=WeightFileResponse,
        responses={
            200: {"content": {"application/octet-stream": {}}, "description": "The whole file"},
            206: {"content": {"application/octet-stream": {}}, "description": "The part that Range asks for"},
            304: {"description": "The caller holds it"},
            **may_answer(400, 404, 409, 416, 422),
        },
    )
    async def file(
        version: Version,
        name: FileName,
        digest: Annotated[Digest | None, Query(description="only if the file has it; lets caches keep it")] = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """A version's file. Only an address with the digest is immutable: a version may be published anew."""
        path, entry, status = await asyncio.to_thread(_find, store, version, name, digest)
        headers = {"ETag": _etag(entry.digest), "Cache-Control": IMMUTABLE if digest else REVALIDATE}
        if if_none_match == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        await memory.content(await memory.version(version), entry)  # for those who ask next
        return WeightFileResponse(path, headers=headers, media_type=FILE_TYPE, stat_result=status)

    return router


def _is_held(manifest: WeightManifest, after: int | None, digest: str | None) -> bool:
    return manifest.weight_version == after and digest in (None, manifest.digest)


def _find(store: WeightReader, version: int, name: str, digest: str | None) -> tuple[Path, FileEntry, os.stat_result]:
    path = store.file_path(version, name)
    entry = next(entry for entry in store.manifest(version).files if entry.name == name)
    try:
        status = path.stat()
    except FileNotFoundError:  # retired since the manifest was read
        status = None
    if digest not in (None, entry.digest) or status is None:
        raise VersionNotFoundError(
            f"file {name!r} of weight version {version} is not that one (any more)", hint="ask for the latest version"
        )
    return path, entry, status


def _etag(digest: str) -> str:
    return f'"{digest}"'


def _answer(held: Held) -> Response:
    """Serialised once for all: the framework would validate a large manifest again on its way out."""
    return Response(held.body, headers=_headers(held), media_type="application/json")


def _headers(held: Held) -> dict[str, str]:
    return {"ETag": _etag(held.manifest.digest), "Cache-Control": REVALIDATE, "Vary": "Accept"}
