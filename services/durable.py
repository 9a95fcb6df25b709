"""Writes that are complete or absent, and survive a power cut.

Files: temporary name, fsync, rename. Folders: filled under a temporary name, every file and the folder fsynced,
then renamed into place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from services.errors import UnavailableError

T = TypeVar("T")

TEMPORARY_PREFIX = ".partial-"
"""Start of the names that an interrupted write leaves; `clear_partial` removes them."""


class WriteGuard:
    """Whether this process may change what it writes. This one lets everything pass; `services.streams.fence` does not.

    with guard.guard(): ...                                          # a change
    with guard.guard_after(new_folder(path)) as folder: ...          # one that takes long to prepare
    """

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch
        """Number of the writer; 0 where there is only one."""

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Raises before the block when the change is not allowed any more."""
        yield

    @contextlib.contextmanager
    def guard_after(self, change: AbstractContextManager[T]) -> Iterator[T]:
        """A `change` whose block prepares what its end makes visible: only the end is guarded.

        Nobody has to wait for the preparation. If the change is not allowed at its end, it ends as after any other
        error: nothing of it becomes visible.
        """
        with contextlib.ExitStack() as guarded, change as prepared:
            yield prepared
            guarded.enter_context(self.guard())


UNGUARDED = WriteGuard()


def fsync_folder(path: Path) -> None:
    """Make the names in the folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Make the file's bytes durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError of a write at `path` into an error that names the remedy."""
    try:
        yield
    except OSError as error:
        remedies = {
            errno.ENOSPC: "free some space on this disk, then start again: the run resumes where it was",
            errno.EDQUOT: "raise the quota or free some space, then start again: the run resumes where it was",
            errno.EACCES: "give this user the right to write there, or set run.dir to another folder",
            errno.EROFS: "the file system is read-only: set run.dir to another folder",
            errno.ENOTDIR: "a part of this path is a file: set run.dir to another folder",
            errno.EEXIST: "there is a file where a folder should be: remove it, or set run.dir to another folder",
            errno.EISDIR: "there is a folder where a file should be, or the reverse: set run.dir to another folder",
        }
        if error.errno not in remedies:
            raise
        raise UnavailableError(f"cannot write {path}: {error.strerror}", hint=remedies[error.errno]) from error


def write_file(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Replace the file at `path` atomically and durably; on any error the old one stays."""
    content = data.encode() if isinstance(data, str) else data
    with explained(path):
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(mode)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def create_file(path: Path, data: str, *, mode: int = 0o644) -> bool:
    """Write the file durably unless it exists; of several callers at once, one gets True."""
    with explained(path):
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(mode)
            path.hardlink_to(temporary)  # unlike a rename, it never replaces
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(path.parent)
        return True


def link_or_copy(source: Path, to: Path) -> None:
    """Make `to` another name of the file, or a copy of it on a file system without hard links."""
    to.unlink(missing_ok=True)
    try:
        to.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, to)


def append_line(path: Path, line: str) -> None:
    """Append one line durably; a line cut short by an earlier crash is ended first."""
    with explained(path), path.open("ab+") as file:
        is_new = not file.tell()
        if not is_new:
            file.seek(-1, os.SEEK_END)
            cut_short = file.read(1) != b"\n"
            file.seek(0, os.SEEK_END)
            if cut_short:
                file.write(b"\n")
        file.write(line.rstrip("\n").encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
        if is_new:
            fsync_folder(path.parent)


def try_lock(handle: int, *, shared: bool = False) -> bool:
    """Take the lock of an open file; False while somebody else has it. It ends with the handle.

    An exclusive lock is had by one, a shared one by many.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(handle: int) -> None:
    """Give up the lock of an open file, if it is had."""
    fcntl.flock(handle, fcntl.LOCK_UN)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of the file; False where there is no such file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder; on success it is renamed to `final` (replacing an older one), else it is removed."""
    with explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=final.parent))
        try:
            temporary.chmod(0o755)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    fsync_file(file)
                else:
                    fsync_folder(file)
            fsync_folder(temporary)
            if final.exists():
                outgoing = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=final.parent))
                final.replace(outgoing)
                temporary.replace(final)
                fsync_folder(final.parent)  # first: else a power cut might leave neither of the two
                shutil.rmtree(outgoing)
            else:
                temporary.replace(final)
                fsync_folder(final.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def clear_partial(folder: Path) -> None:
    """Remove what interrupted writes left in the folder. Only its single writer may call this."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
