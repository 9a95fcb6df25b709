"""What a program asks of the disk, in its order, so that a test can tell what a power cut would leave.

Of two changes that are not separated by an fsync either may be lost alone. So bytes are fsynced before they get their
name, and the folder of that name before anything is deleted that the new name makes superfluous.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.durable import TEMPORARY_PREFIX
from services.streams.rollouts import RolloutReader


class DiskOrder:
    """The steps so far as `(verb, path)`, and what is wrong with their order.

    order.steps     [("fsync", "a/.partial-x"), ("away", "a/b"), ("name", "a/b"), ("fsync", "a"), ("delete", "a/c")]
    order.faults    ["a/b got its name before its bytes were durable"]
    """

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self._durable: set[tuple[int, int, int]] = set()
        self._unnamed: dict[int, set[str]] = {}  # by thread: folders with a name that may still be lost
        self._superseded: set[str] = set()

    def fsynced(self, handle: int) -> None:
        """A file's bytes or a folder's names are durable."""
        path = Path(f"/proc/self/fd/{handle}").readlink()
        self._durable.add(_identity(path))
        self._pending().discard(str(path))
        self.steps.append(("fsync", str(path)))

    def named(self, source: Path, target: Path) -> None:
        """`source` gets the name `target`."""
        leaves = target.name.startswith(TEMPORARY_PREFIX)  # on its way out: what is taken away need not be durable
        for path in () if leaves else (source, *source.rglob("*")):
            if _identity(path) not in self._durable:
                self.faults.append(f"{target} got its name before the bytes of {path} were durable")
        if leaves:
            self._superseded.add(str(target))
        self._pending().add(str(target.parent))
        self.steps.append(("away", str(source)) if leaves else ("name", str(target)))

    def deleted(self, path: Path) -> None:
        """What was visible once is gone for good."""
        if path.name.startswith(TEMPORARY_PREFIX) and str(path) not in self._superseded:
            return
        if self._pending():
            self.faults.append(f"{path} was deleted while names in {sorted(self._pending())} could still be lost")
        self.steps.append(("delete", str(path)))

    def finished(self) -> list[str]:
        """All faults, those of names that never became durable among them."""
        pending = sorted(folder for folders in self._unnamed.values() for folder in folders if Path(folder).exists())
        return [*self.faults, *(f"the names in {folder} were never made durable" for folder in pending)]

    def _pending(self) -> set[str]:
        return self._unnamed.setdefault(threading.get_ident(), set())


def _identity(path: Path) -> tuple[int, int, int]:
    """Changes whenever the file is written to."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, 0 if path.is_dir() else status.st_size


@contextmanager
def disk_order(monkeypatch: pytest.MonkeyPatch) -> Iterator[DiskOrder]:
    """Records what happens in the block: every fsync, rename, link and deletion, and rollouts deleted from Redis."""
    order = DiskOrder()
    fsync, replace, rename, link, unlink, rmtree = os.fsync, os.replace, os.rename, os.link, os.unlink, shutil.rmtree
    delete = RolloutReader.delete

    def watched_fsync(handle: int) -> None:
        fsync(handle)
        order.fsynced(handle)

    def naming(act: Any) -> Any:
        def watched(source: Any, target: Any, **options: Any) -> None:
            order.named(Path(source), Path(target))
            act(source, target, **options)

        return watched

    def watched_unlink(path: Any, **options: Any) -> None:
        if "dir_fd" not in options:  # else within a folder that is deleted as a whole
            order.deleted(Path(path))
        unlink(path, **options)

    def watched_rmtree(path: Any, *arguments: Any, **options: Any) -> None:
        order.deleted(Path(path))
        rmtree(path, *arguments, **options)

    def watched_delete(self: RolloutReader, entry_ids: Any) -> None:
        if entry_ids:
            order.deleted(Path(f"redis/{len(entry_ids)} rollouts"))
        delete(self, entry_ids)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", watched_fsync)
        patch.setattr(os, "replace", naming(replace))
        patch.setattr(os, "rename", naming(rename))
        patch.setattr(os, "link", naming(link))
        patch.setattr(os, "unlink", watched_unlink)
        patch.setattr(shutil, "rmtree", watched_rmtree)
        patch.setattr(RolloutReader, "delete", watched_delete)
        yield order
