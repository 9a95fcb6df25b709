"""Large files that the generators of one host fetch once for all of them.

folder/<digest>            a verified file; each mirror makes a hard link of it, so its pages are shared in memory too
folder/<two digits>.lock   held while files are fetched whose digests start so; the kernel releases that of the dead

A mirror that needs a file while another one fetches it waits, and goes on with the download if the other one dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from services import durable
from services.contracts import FileEntry
from services.tensors import digest_file
from services.weights.client import WeightClient

SHARED_BYTES = 1 << 20
"""Smaller files are not worth a lock."""
KEPT_S = 600.0
"""A file that nobody has asked for longer than this is deleted with the next download."""
LOOK_S = 0.2
"""How often a locked file is looked at."""
LOCK = ".lock"


class HostDownloads:
    """The files in one folder of this host; any number of processes share it."""

    def __init__(self, folder: Path, client: WeightClient) -> None:
        self._folder = folder
        self._client = client

    async def fetch(self, version: int, entry: FileEntry, to: Path) -> Path:
        """As `WeightClient.fetch`, but only where no process of this host has the file."""
        if entry.size_bytes < SHARED_BYTES:
            return await self._client.fetch(version, entry, to)
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        shared = self._folder / entry.digest
        async with _locked(self._folder / f"{entry.digest[:2]}{LOCK}"):
            if not await asyncio.to_thread(_is_sound, shared, entry):
                await self._client.fetch(version, entry, shared)
                await asyncio.to_thread(self._clear, entry.digest)
            os.utime(shared)  # it was asked for
            await asyncio.to_thread(durable.link_or_copy, shared, to)
        return to

    def _clear(self, newest: str) -> None:
        """Delete what nobody has asked for lately; what is being fetched has changed lately."""
        oldest = time.time() - KEPT_S
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.name != newest and path.suffix != LOCK and path.stat().st_mtime < oldest:
                    path.unlink()


def _is_sound(path: Path, entry: FileEntry) -> bool:
    """Whether the file is there as it was fetched; a damaged one is deleted."""
    try:
        sound = path.stat().st_size == entry.size_bytes and digest_file(path) == entry.digest
    except FileNotFoundError:
        return False
    if not sound:
        path.unlink()
    return sound


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Hold the lock of this file. It is asked for again and again: a thread that waits for it could not be stopped."""
    with path.open("a") as file:
        while not durable.try_lock(file.fileno()):  # noqa: ASYNC110 - another process has it, and tells nobody
            await asyncio.sleep(LOOK_S)
        yield
