"""Routes of weight sync: manifests and files of the published versions. A file is never read into memory whole."""

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
from services.contracts import Digest, FileEntry, FileName, WeightManifest
from services.errors import VersionNotFoundError
from services.weights.reader import MAX_VERSION, WeightReader

MAX_POLL_S = 60.0
"""Longest a request for the latest version may wait."""

DISK_CHECK_S = 1.0
"""A waiting request also looks at the disk this often, so that a lost notification costs a second and not a poll."""

IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATE = "no-cache"

Version = Annotated[int, PathParameter(ge=0, le=MAX_VERSION, description="weight version")]
IfNoneMatch = Annotated[str | None, Header(description="ETag of what the caller holds")]


class WeightFileResponse(FileResponse):
    """A whole file is sent by sendfile (`services.sendfile`); ranges are read in pieces of 1 MiB instead of 64 KiB."""

    chunk_size = 1 << 20


def weights_router(store: WeightReader, notifier: ChangeNotifier) -> APIRouter:
    """The /v1/weights routes over one run's versions."""
    router = APIRouter(prefix="/v1/weights", tags=["weights"])

    @router.get(
        "/latest",
        response_model=WeightManifest,
        responses={204: {"description": "Still the same at timeout_s"}, **may_answer(409, 422)},
    )
    async def latest(
        after: Annotated[int | None, Query(ge=0, le=MAX_VERSION, description="version the caller holds")] = None,
        digest: Annotated[Digest | None, Query(description="its digest; unset: any content counts as held")] = None,
        timeout_s: Annotated[float, Query(ge=0, le=MAX_POLL_S, allow_inf_nan=False)] = 30.0,
    ) -> Response:
        """The newest version's manifest; waits while the caller holds exactly that version."""
        give_up_at = time.monotonic() + timeout_s
        while True:
            change = notifier.next_change()
            manifest = await asyncio.to_thread(store.latest)
            if manifest is not None and not _holds(manifest, after, digest):
                return _manifest_response(manifest)
            remaining_s = give_up_at - time.monotonic()
            if remaining_s <= 0 or notifier.closed:
                return Response(status_code=204)
            await notifier.wait(change, min(remaining_s, DISK_CHECK_S))

    @router.get(
        "/{version}",
        response_model=WeightManifest,
        responses={304: {"description": "The caller holds it"}, **may_answer(404, 409, 422)},
    )
    async def manifest(version: Version, if_none_match: IfNoneMatch = None) -> Response:
        """A version's manifest."""
        found = await asyncio.to_thread(store.manifest, version)
        if if_none_match == _etag(found.digest):
            return Response(status_code=304, headers={"ETag": if_none_match})
        return _manifest_response(found)

    @router.get(
        "/{version}/files/{name}",
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
        return WeightFileResponse(path, headers=headers, media_type="application/octet-stream", stat_result=status)

    return router


def _holds(manifest: WeightManifest, after: int | None, digest: str | None) -> bool:
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


def _manifest_response(manifest: WeightManifest) -> Response:
    """Serialised once, here: the framework would validate a large manifest again on its way out."""
    headers = {"ETag": _etag(manifest.digest), "Cache-Control": REVALIDATE}
    return Response(manifest.model_dump_json(), headers=headers, media_type="application/json")
