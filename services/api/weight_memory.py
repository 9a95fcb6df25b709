"""What pullers ask for again and again, ready to be sent: manifests, small files. Any number of requests share a read.

An answer from here needs no thread: one `stat` tells whether what is in memory is still what is in the folder.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.contracts import FileEntry, WeightManifest
from services.errors import VersionNotFoundError
from services.tensors import digest_bytes
from services.weights.bundle import bundle
from services.weights.reader import WeightReader

FILE_BYTES = 1 << 20
"""Files up to this size are kept in memory: deltas and adapters of small models, configs, tokenizers."""
TOTAL_BYTES = 64 << 20
"""All of them together; those that were asked for longest ago are dropped first."""
SENDING_BYTES = 64 << 20
"""Of answers from memory that their clients have not taken yet. Beyond, small files are sent as large ones are: by the
kernel, from the disk."""
MANIFESTS = 64
SETTLED_NS = 100_000_000
"""A folder that changed less long ago may change again at the same time of change: clocks of files tick in steps."""

IMMUTABLE = "public, max-age=31536000, immutable"
FILE_TYPE = "application/octet-stream"

Identity = tuple[int, int]
"""Inode and time of change of a manifest's file."""


@dataclass(frozen=True, slots=False, eq=False)
class Held:
    """A version's manifest."""

    manifest: WeightManifest
    identity: Identity

    @cached_property
    def body(self) -> bytes:
        """As it is sent; serialising a large one takes milliseconds."""
        return self.manifest.model_dump_json().encode()

    @cached_property
    def files(self) -> dict[str, FileEntry]:
        """Its files by name."""
        return {entry.name: entry for entry in self.manifest.files}


class WeightMemory:
    """One run's versions."""

    def __init__(self, store: WeightReader) -> None:
        self._store = store
        self._held: OrderedDict[int, Held] = OrderedDict()
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._newest: tuple[int, int | None] = (-1, None)
        """Time of change of the store's folder, and the newest version then."""
        self._reading: dict[int, asyncio.Task[Held | None]] = {}
        self._bundle: tuple[Held, bytes] | None = None
        """The last version that was asked for with its file."""
        self.sending_bytes = 0
        """Of answers that are being sent from memory."""

    async def newest(self) -> Held | None:
        """The newest version; None before the first. Its delta or adapters, where small, are at hand then."""
        changed_ns = self._changed_ns()
        if changed_ns == self._newest[0]:
            version = self._newest[1]
            held = None if version is None else self._known(version)
            if held is not None or version is None:
                return held
        reading = self._reading.get(changed_ns)
        if reading is None:
            # whoever asks after the next change starts another read, so nobody gets what is older than his question
            reading = self._reading[changed_ns] = asyncio.create_task(self._read_newest(changed_ns))
            reading.add_done_callback(lambda _: self._reading.pop(changed_ns, None))
        return await asyncio.shield(reading)

    async def version(self, version: int) -> Held:
        """VersionNotFoundError and WeightError as `WeightReader.manifest`."""
        return self._known(version) or self._keep(await asyncio.to_thread(self._store.manifest, version))

    async def content(self, held: Held, entry: FileEntry) -> bytes | None:
        """A small file's bytes; None for others, and for one that is damaged: its reader will say so."""
        if entry.size_bytes > FILE_BYTES:
            return None
        known = self._files.get(entry.digest)
        if known is None:
            known = await asyncio.to_thread(self._read_file, held, entry)
        return known

    def at_hand(self, version: int, name: str, digest: str) -> bytes | None:
        """The file's bytes if they are in memory, may be sent now, and the version still has that file."""
        content = self._files.get(digest)
        held = None if content is None or self._is_full else self._known(version)
        if held is None or (entry := held.files.get(name)) is None or entry.digest != digest:
            return None
        self._files.move_to_end(digest)
        return content

    async def bundled(self, held: Held, after: int | None, digest: str | None) -> bytes | None:
        """The manifest with the small file that leads to it from the version that the caller holds, if one does.

        None as well while so many answers are being sent that this one has to wait for its file.
        """
        manifest, change = held.manifest, held.manifest.change
        if (
            self._is_full
            or change is None
            or after != manifest.parent_version
            or digest not in (None, manifest.parent_digest)
        ):
            return None
        if self._bundle is not None and self._bundle[0] is held:
            return self._bundle[1]
        content = await self.content(held, change)
        if content is None:
            return None
        self._bundle = (held, bundle(held.body, content))
        return self._bundle[1]

    async def send(self, send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], content: bytes) -> None:
        """An answer whose bytes count as being sent until its client has taken all but the last few."""
        self.sending_bytes += len(content)
        try:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": content, "more_body": True})
            await send({"type": "http.response.body", "body": b""})  # the server sends this when that is on its way
        finally:
            self.sending_bytes -= len(content)

    @property
    def _is_full(self) -> bool:
        return self.sending_bytes >= SENDING_BYTES

    def _changed_ns(self) -> int:
        try:
            return self._store.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _known(self, version: int) -> Held | None:
        held = self._held.get(version)
        return held if held is not None and held.identity == self._identity(version) else None

    def _identity(self, version: int) -> Identity:
        try:
            status = self._store.manifest_path(version).stat()
        except FileNotFoundError:
            return (0, 0)
        return status.st_ino, status.st_mtime_ns

    def _keep(self, manifest: WeightManifest) -> Held:
        version = manifest.weight_version
        self._held[version] = held = Held(manifest, self._identity(version))
        self._held.move_to_end(version)
        while len(self._held) > MANIFESTS:
            self._held.popitem(last=False)
        return held

    async def _read_newest(self, changed_ns: int) -> Held | None:
        settled = time.time_ns() - changed_ns > SETTLED_NS
        manifest = await asyncio.to_thread(self._store.latest)
        held = None if manifest is None else self._keep(manifest)
        if held is not None and (change := held.manifest.change) is not None:
            await self.content(held, change)
        self._newest = (changed_ns, None if held is None else held.manifest.weight_version) if settled else (-1, None)
        return held

    def _read_file(self, held: Held, entry: FileEntry) -> bytes | None:
        try:
            content = self._store.file_path(held.manifest.weight_version, entry.name).read_bytes()
        except (OSError, VersionNotFoundError):
            return None
        if digest_bytes(content) != entry.digest:
            return None
        self._files[entry.digest] = content
        while sum(map(len, self._files.values())) > TOTAL_BYTES:
            self._files.popitem(last=False)
        return content


class FromMemory(Response):
    """`content` as `WeightMemory.send` sends it."""

    def __init__(self, memory: WeightMemory, content: bytes, *, headers: Mapping[str, str], media_type: str) -> None:
        super().__init__(content, headers=headers, media_type=media_type)
        self._memory = memory
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._memory.send(send, self.status_code, self.raw_headers, self._content)


class SmallFiles:
    """ASGI layer that answers for files in memory; every other request goes to the routes, which say what they need."""

    _path = re.compile(r"/v1/weights/([0-9]{1,8})/files/([^?]+)")
    _conditions = frozenset({b"range", b"if-none-match", b"if-range"})

    def __init__(self, app: ASGIApp, *, memory: WeightMemory) -> None:
        self._app = app
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content = self._content(scope) if scope["type"] == "http" and scope["method"] == "GET" else None
        if content is None:
            await self._app(scope, receive, send)
            return
        digest = scope["query_string"].partition(b"=")[2]
        headers = [
            (b"content-type", FILE_TYPE.encode()),
            (b"content-length", str(len(content)).encode()),
            (b"accept-ranges", b"bytes"),
            (b"etag", b'"' + digest + b'"'),
            (b"cache-control", IMMUTABLE.encode()),
        ]
        await self._memory.send(send, 200, headers, content)

    def _content(self, scope: Scope) -> bytes | None:
        key, _, digest = scope["query_string"].partition(b"=")
        if key != b"digest" or not (found := self._path.fullmatch(scope["path"])):
            return None
        if not self._conditions.isdisjoint(name for name, _ in scope["headers"]):
            return None
        return self._memory.at_hand(int(found[1]), found[2], digest.decode("latin-1"))
