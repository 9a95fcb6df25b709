"""Files of a version that another machine is sending, until its manifest makes them a version. Knows no manifests.

One version at a time: the first file of another version takes the place of what was there, so what a broken learner
leaves is bounded by one version of at most `max_bytes`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from fastapi import HTTPException

from services import durable

MAX_FILES = 256
SILENCE_S = 30.0
"""A sender that is quiet for this long has gone."""


class Staging:
    """Below `folder`, one folder a version."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    async def receive(self, version: int, name: str, chunks: AsyncIterator[bytes], announced: int | None) -> None:
        """Stream one file to disk; it appears under its name when it is whole.

        HTTPException 413 beyond the limits, 408 when the sender falls silent, 400 when less came than was announced.
        """
        target = await asyncio.to_thread(self._open, version)
        room = self._max_bytes - await asyncio.to_thread(_used, target, name)
        if announced is not None and announced > room:
            raise self._too_large()
        with durable.explained(target):
            part = await asyncio.to_thread(_temporary, target)
            try:
                received = await self._write(part, chunks, room)
                if announced is not None and received != announced:
                    raise HTTPException(400, f"{received} of {announced} announced bytes arrived")
                await asyncio.to_thread(part.replace, target / name)
            finally:
                await asyncio.to_thread(part.unlink, missing_ok=True)

    async def _write(self, part: Path, chunks: AsyncIterator[bytes], room: int) -> int:
        received = 0
        file: BinaryIO = await asyncio.to_thread(part.open, "wb")
        try:
            while True:
                try:
                    chunk = await asyncio.wait_for(anext(chunks, None), SILENCE_S)
                except TimeoutError as error:
                    raise HTTPException(408, f"nothing arrived for {SILENCE_S:g} s") from error
                if chunk is None:
                    return received
                received += len(chunk)
                if received > room:
                    raise self._too_large()
                await asyncio.to_thread(file.write, chunk)
        finally:
            await asyncio.to_thread(file.close)

    def files(self, version: int) -> dict[str, Path]:
        """What has arrived whole for that version, by name."""
        folder = self._folder / str(version)
        if not folder.is_dir():
            return {}
        return {path.name: path for path in folder.iterdir() if not path.name.startswith(durable.TEMPORARY_PREFIX)}

    def clear(self) -> None:
        """Forget everything that arrived."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, version: int) -> Path:
        folder = self._folder / str(version)
        if self._folder.is_dir():
            for other in self._folder.iterdir():
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
        with durable.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"a version may have at most {self._max_bytes} bytes in {MAX_FILES} files")


def _temporary(folder: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=durable.TEMPORARY_PREFIX, dir=folder)
    os.close(handle)
    return Path(name)


def _used(folder: Path, name: str) -> int:
    """Bytes in the folder, not counting the file that is about to be replaced."""
    others = [path for path in folder.iterdir() if path.name != name]
    if len(others) >= MAX_FILES:
        raise HTTPException(413, f"a version may have at most {MAX_FILES} files")
    return sum(path.stat().st_size for path in others)
