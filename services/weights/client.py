"""HTTP client of the weight-sync endpoint: asks for manifests and downloads files.

A request that fails on the way is retried until the endpoint has been silent for `deadline_s`; a download resumes
where it broke off. What arrives has the size and digest in its manifest, or the call fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
from pydantic import ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from services import durable
from services.contracts import FileEntry, WeightManifest
from services.errors import ContractError, DigestError, UnavailableError, VersionNotFoundError, WeightError
from services.http_client import NoServicesError, answered_by_another, open_client
from services.run_folder import RunIdentity
from services.tensors import digest_bytes, digest_file
from services.weights.bundle import MEDIA_TYPE, unbundle

CONNECT_S = 5.0
SILENCE_S = 30.0
"""Longest pause within one answer before the attempt counts as failed."""

FIRST_RETRY_S = 0.05
LAST_RETRY_S = 5.0

CHUNK_BYTES = 1 << 20
MEASURED_BYTES = 1 << 20
"""A download of at least this many measures the line; a shorter one is mostly waiting for the answer."""
MAX_REASON_BYTES = 1 << 16
MAX_MANIFEST_BYTES = 64 << 20
"""A manifest of a model with 100,000 tensors has about 20 MB."""

T = TypeVar("T")


class _TryAgainError(Exception):
    """The endpoint answered that it cannot answer now."""


class _Patience:
    """Ends the attempts once `seconds` have gone by without progress; the pauses between them grow until there is."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.progress()

    def progress(self) -> None:
        self._since = time.monotonic()
        self._pauses = 0

    def __call__(self, _: RetryCallState) -> bool:
        return time.monotonic() - self._since >= self.seconds

    def pause_s(self, _: RetryCallState) -> float:
        self._pauses += 1
        return min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._pauses, 30)) * random.uniform(0.5, 1.0)


class WeightClient:
    """Talks to one endpoint; close it, or use it as an async context manager.

    `token`: bearer token, where the endpoint wants one. `identity`: the run whose endpoint must be there, before the
    token is sent. `tls_cert`: certificate to trust besides the system's. `deadline_s`: how long the endpoint may be
    out of reach before a call raises UnavailableError.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        deadline_s: float,
        identity: RunIdentity | None = None,
        tls_cert: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = base_url.rstrip("/")
        self._deadline_s = deadline_s
        self.line_bytes_per_s = 0.0
        """Speed of the last long download; 0 before the first."""
        self._bundled: tuple[str, bytes] | None = None
        """Digest and bytes of the file that came with the last manifest."""
        self._http = open_client(
            self._url,
            token=token,
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            identity=identity,
            tls_cert=tls_cert,
            # a compressed answer could neither be resumed nor compared with its size
            headers={"Accept-Encoding": "identity"},
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def latest(self, after: int | None, digest: str | None, timeout_s: float) -> WeightManifest | None:
        """The newest version as soon as it is not exactly (`after`, `digest`); None when it still is at `timeout_s`."""
        params: dict[str, str | int | float] = {"timeout_s": timeout_s}
        params |= {"after": after} if after is not None else {}
        params |= {"digest": digest} if digest is not None else {}
        accept = {"Accept": f"{MEDIA_TYPE}, application/json"}
        body, media_type = await self._get("/v1/weights/latest", params=params, headers=accept, wait_s=timeout_s)
        if media_type != MEDIA_TYPE:
            return _manifest(body) if body else None
        content, change = unbundle(body)
        self._bundled = (digest_bytes(change), change)
        return _manifest(content)

    async def manifest(self, version: int) -> WeightManifest:
        """VersionNotFoundError when the endpoint does not have it (any more)."""
        return _manifest((await self._get(f"/v1/weights/{version}"))[0])

    async def fetch(self, version: int, entry: FileEntry, to: Path) -> Path:
        """Download one file of a version to `to`, whole and verified; DigestError when the endpoint's is another."""
        part = to.with_name(f"{durable.TEMPORARY_PREFIX}{entry.digest}")
        bundled, self._bundled = self._bundled, None
        if bundled is not None and bundled[0] == entry.digest:
            await asyncio.to_thread(part.write_bytes, bundled[1])
            await asyncio.to_thread(part.replace, to)
            return to
        resumed = await asyncio.to_thread(part.exists)
        await self._download(version, entry, part)
        if resumed and await asyncio.to_thread(digest_file, part) != entry.digest:
            await asyncio.to_thread(part.unlink)  # what an earlier process left was damaged
            await self._download(version, entry, part)
        if await asyncio.to_thread(digest_file, part) != entry.digest:
            await asyncio.to_thread(part.unlink)
            raise DigestError(
                f"file {entry.name!r} of weight version {version} does not have the digest of its manifest"
            )
        await asyncio.to_thread(part.replace, to)
        return to

    async def _get(
        self,
        path: str,
        params: Mapping[str, str | int | float] | None = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
    ) -> tuple[bytes, str]:
        """The answer's body, empty for 204, and its type; the endpoint may take `wait_s` before it answers."""

        async def attempt(_: _Patience) -> tuple[bytes, str]:
            timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S, read=wait_s + SILENCE_S)
            async with self._http.stream("GET", path, params=params, headers=headers, timeout=timeout) as response:
                await _check(response)
                body = await _read(response, MAX_MANIFEST_BYTES)
            if body and b'"weight_version"' not in body:
                raise _TryAgainError(
                    f"status {response.status_code} with a body that is not from the services of a run"
                )
            return body, response.headers.get("content-type", "")

        return await self._persist(attempt, self._deadline_s + wait_s)

    async def _download(self, version: int, entry: FileEntry, part: Path) -> None:
        """Append to `part` what it lacks, over as many attempts as make progress."""
        reached = 0

        async def attempt(patience: _Patience) -> None:
            nonlocal reached
            have = await asyncio.to_thread(_size, part)
            if have > reached:  # what the attempt before it brought
                reached = have
                patience.progress()
            if 0 < have == entry.size_bytes:
                return
            # If-Range: bytes are only joined to bytes of the same content
            headers = (
                {"Range": f"bytes={have}-", "If-Range": f'"{entry.digest}"'} if 0 < have < entry.size_bytes else {}
            )
            path, params = f"/v1/weights/{version}/files/{entry.name}", {"digest": entry.digest}
            async with self._http.stream("GET", path, params=params, headers=headers) as response:
                await _check(response)
                started, before = time.monotonic(), have if response.status_code == httpx.codes.PARTIAL_CONTENT else 0
                mode = "ab" if response.status_code == httpx.codes.PARTIAL_CONTENT else "wb"
                async with contextlib.aclosing(_append(response, part, mode)) as sizes:
                    async for size in sizes:
                        if size > reached:  # a line that always breaks at the same place is no progress
                            reached = size
                            patience.progress()
                        if size > entry.size_bytes:
                            raise DigestError(
                                f"file {entry.name!r} is longer than the {entry.size_bytes} bytes promised"
                            )
                if reached - before >= MEASURED_BYTES:
                    self.line_bytes_per_s = (reached - before) / (time.monotonic() - started)

        await self._persist(attempt, self._deadline_s)

    async def _persist(self, attempt: Callable[[_Patience], Awaitable[T]], seconds: float) -> T:
        patience = _Patience(seconds)
        attempts = AsyncRetrying(
            retry=retry_if_exception_type((httpx.TransportError, _TryAgainError, NoServicesError)),
            wait=patience.pause_s,
            stop=patience,
            reraise=True,
        )
        try:
            return await attempts(attempt, patience)
        except (httpx.TransportError, _TryAgainError, NoServicesError) as error:
            reason = error.message if isinstance(error, NoServicesError) else str(error) or type(error).__name__
            raise UnavailableError(
                f"the weight endpoint {self._url} gave no answer for {seconds:g} s: {reason}",
                hint="is `sept services` running there, is services.url its address, and does everything in between "
                "(ingress, proxy) let its answers through?",
            ) from error


async def _check(response: httpx.Response) -> None:
    """Raise what the endpoint's refusal means here; what something in between answers is no refusal."""
    status = response.status_code
    body = b"" if response.is_success else await _read(response, MAX_REASON_BYTES)
    if another := answered_by_another(response, body):
        raise _TryAgainError(another)
    if response.is_success:
        return
    if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
        raise _TryAgainError(f"status {status}")
    what = f"{response.request.method} {response.request.url.path}"
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise UnavailableError(
            f"{what} was refused with status {status}", hint="set services.token to the endpoint's token"
        )
    reason = body.decode(errors="replace")
    if status == httpx.codes.NOT_FOUND:
        raise VersionNotFoundError(f"{what}: not there (any more)", hint="ask for the latest version")
    if status == httpx.codes.CONFLICT:
        raise WeightError(f"{what} was refused: {reason}")
    raise ContractError(f"{what} was refused with status {status}: {reason}")


async def _append(response: httpx.Response, part: Path, mode: str) -> AsyncGenerator[int, None]:
    """Write the body to `part` in pieces of CHUNK_BYTES; yields the file's size after each.

    What has arrived when the line breaks is written too: `aiter_raw` with a size of pieces would drop it.
    """
    waiting = bytearray()
    with durable.explained(part):
        file = await asyncio.to_thread(part.open, mode)
        try:
            async for chunk in response.aiter_raw():
                waiting += chunk
                if len(waiting) >= CHUNK_BYTES:
                    await asyncio.to_thread(file.write, waiting)
                    waiting = bytearray()
                    yield file.tell()
        finally:
            await asyncio.to_thread(file.write, waiting)
            await asyncio.to_thread(file.close)
    yield _size(part)


async def _read(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            raise ContractError(f"the answer to {response.request.url.path} exceeds the limit of {limit} bytes")
    return bytes(body)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _manifest(body: bytes) -> WeightManifest:
    try:
        return WeightManifest.model_validate_json(body)
    except ValidationError as error:
        raise ContractError(
            f"the endpoint's answer is not a manifest: {error.error_count()} errors",
            hint="run the same release on both sides",
        ) from error
