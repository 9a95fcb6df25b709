"""What the learner resumes from: tensors as safetensors, the rest as JSON, written whole or not at all.

    checkpoints/v000012/state-00000.safetensors    rank 0's rows of master weights and moments, and the step count
    checkpoints/v000012/state-00001.safetensors    rank 1's rows; the header of each says which rows those are
    checkpoints/v000012/meta.json                  run, version, and the digest of every state file

Every rank writes its own file, and any number of ranks reads what it needs of all of them. Where the hosts of the ranks
share no folder, rank 0 writes all rows, and reads them for the others (`gathered_state`). (torch's own distributed
checkpoints were not taken: their index is a pickle, and with safetensors they build each file in memory first.)
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import structlog
import torch

from learner.parallel.file_tensors import FileTensor
from learner.parallel.ranks import Order, Ranks
from learner.parallel.sharding import first_local_row, local_shard
from learner.training.gathered_state import Saved, send_index, write_gathered
from learner.training.host_copies import HostCopies
from services import durable
from services.durable import UNGUARDED, WriteGuard
from services.errors import CheckpointError, WeightError
from services.run_folder import CheckpointFolder, version_name, versions_in
from services.tensors import digest_bytes, digest_file, read_header

log = structlog.get_logger()

ROWS = "rows"
"""Key in a state file's header: name -> [first row in the whole tensor, rows of the whole tensor], as JSON."""
DIGEST_BYTES = 32
READERS = 8
"""Files that are verified at once."""

UNUSABLE = (OSError, ValueError, KeyError, TypeError, CheckpointError, WeightError)
"""What reading a checkpoint raises whose files are gone or not what was written."""


class SavedTensor:
    """One tensor of a checkpoint, read as far as it is asked for.

    saved.shape        (151936, 896)
    saved[64:128]      those rows, from whichever files hold them
    saved[...]         all of it
    """

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self._parts: list[tuple[int, FileTensor]] = []

    @property
    def dtype(self) -> str:
        """safetensors' name of its type."""
        return self._parts[0][1].dtype

    def add(self, first: int, rows: int, part: FileTensor) -> None:
        """`part` holds rows from `first` on; `rows` in all."""
        self.shape = (rows, *part.shape[1:]) if part.shape else ()
        self._parts.append((first, part))
        self._parts.sort(key=lambda part: part[0])

    def __getitem__(self, rows: Any) -> torch.Tensor:
        """Rows by slice, or all of them by `...`; CheckpointError when some are in no file."""
        if not self.shape:
            return self._parts[0][1][...]
        start, stop, _ = (slice(None) if rows is ... else rows).indices(self.shape[0])
        found = []
        for first, part in self._parts:
            low, high = max(start, first), min(stop, first + part.shape[0])
            if low < high:
                found.append(part[low - first : high - first])
        tensor = found[0] if len(found) == 1 else torch.cat(found) if found else torch.empty(0, *self.shape[1:])
        if tensor.shape[0] != stop - start:
            raise CheckpointError(
                f"rows {start} to {stop} are not all in the checkpoint, only {tensor.shape[0]} of them"
            )
        return tensor


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The learner after `weight_version` rounds."""

    run_id: str
    weight_version: int
    tensors: Mapping[str, Saved]
    curriculum: Mapping[str, Any] | None = None
    """State of the choice of prompts, where that has one; rank 0 alone has it."""


@dataclass(frozen=True, slots=True)
class _Sharing:
    """Who has the folder of rank 0 before it."""

    by_writers: bool = True
    """All ranks that hold the first copy of the model."""
    by_all: bool = True


@dataclass(slots=True)
class _Begun:
    """A checkpoint between its first byte and the moment it counts."""

    folder: ExitStack
    path: Path
    weight_version: int
    digest: Future[str]
    """Of this rank's file, once it is durable."""
    curriculum: Mapping[str, Any] | None


@dataclass(slots=True)
class Checkpoints:
    """The checkpoints of one run, newest kept longest. Rank 0 calls; the other ranks call the same on its order.

    `async_write`: the state is copied to host memory at once, which takes that memory, and written while training goes
    on; else `begin` returns when it is written.
    """

    folder: Path
    run_id: str
    keep: int
    ranks: Ranks = field(default_factory=Ranks)
    async_write: bool = False
    fence: WriteGuard = UNGUARDED
    _begun: _Begun | None = None
    _thread: ThreadPoolExecutor = field(init=False)
    _sharing: _Sharing = field(init=False)
    _copies: HostCopies = field(default_factory=HostCopies)

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        if self.ranks.is_leader:
            with self.fence.guard():
                durable.clear_partial(self.folder)
        self._sharing = _find_sharing(self.folder, self.ranks) if self.ranks.nodes > 1 else _Sharing()

    def save(
        self,
        weight_version: int,
        tensors: Mapping[str, torch.Tensor],
        *,
        before_commit: Callable[[], None] = lambda: None,
    ) -> Path:
        """`begin`, then `commit`."""
        self.begin(weight_version, tensors)
        return self.commit(before_commit)

    def begin(
        self, weight_version: int, tensors: Mapping[str, torch.Tensor], curriculum: Mapping[str, Any] | None = None
    ) -> None:
        """Start writing a checkpoint; it does not count before `commit`. Other ranks than 0 may give any version.

        `curriculum`: state of the choice of prompts, as JSON can hold it; it must not change any more.
        """
        self.ranks.send_order(Order.BEGIN_CHECKPOINT)
        with ExitStack() as stack:
            name = ""
            if self.ranks.is_leader:
                final = self.folder / version_name(weight_version)
                name = stack.enter_context(self.fence.guard_after(durable.new_folder(final))).name
            path = self.folder / _broadcast_name(name, self.ranks)
            digest = self._write(CheckpointFolder(path).state_of(self.ranks.rank), tensors)
            self._begun = _Begun(stack.pop_all(), path, weight_version, digest, curriculum)

    def _write(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> Future[str]:
        """This rank's file, where it has one to write; its digest once it is durable, empty without a file."""
        if not self._sharing.by_writers:
            whole = {name: [0, t.shape[0] if t.ndim else 1] for name, t in tensors.items()}
            return _done(write_gathered(tensors, path, {ROWS: json.dumps(whole)}, self.ranks))
        if not self.ranks.holds_first_replica:
            return _done("")
        mine = {
            name: local_shard(t).detach()
            for name, t in tensors.items()
            if self.ranks.is_leader or local_shard(t) is not t
        }
        rows = {name: [first_local_row(t), t.shape[0] if t.ndim else 1] for name, t in tensors.items() if name in mine}
        if self.async_write:
            mine = self._copies.take(mine)
        digest = self._thread.submit(_write_state, mine, rows, path, self._copies.wait)
        if not self.async_write:
            digest.result()
        return digest

    @property
    def begun(self) -> int | None:
        """The version of the checkpoint that is waiting for `commit`."""
        return None if self._begun is None else self._begun.weight_version

    def commit(self, before_commit: Callable[[], None] = lambda: None) -> Path:
        """Once all that was begun is written, make it count; then drop the checkpoints beyond `keep`.

        `before_commit` runs when the bytes are durable and before the checkpoint counts: what it does is done again
        should the learner die in between.
        """
        self.ranks.send_order(Order.COMMIT_CHECKPOINT)
        begun, self._begun = self._begun, None
        assert begun is not None, "begin comes first"
        final = self.folder / version_name(begun.weight_version)
        with begun.folder:
            digests = torch.zeros(self.ranks.size, DIGEST_BYTES, dtype=torch.int64)
            if digest := begun.digest.result():
                digests[self.ranks.rank] = torch.tensor(list(bytes.fromhex(digest)))
            self.ranks.all_reduce_sum(digests)
            if not self.ranks.is_leader:
                return final
            files = CheckpointFolder(begun.path)
            written = self.ranks.size // self.ranks.replicas if self._sharing.by_writers else 1
            meta = {
                "run_id": self.run_id,
                "weight_version": begun.weight_version,
                "epoch": self.fence.epoch,
                "digests": {
                    files.state_of(rank).name: bytes(row.tolist()).hex() for rank, row in enumerate(digests[:written])
                },
            }
            if begun.curriculum is not None:
                state = json.dumps(begun.curriculum)
                meta |= {"curriculum": state, "curriculum_digest": digest_bytes(state.encode())}
            files.meta.write_text(json.dumps(meta, indent=2) + "\n")
            before_commit()
        with self.fence.guard():
            for outdated in self._newest_first()[self.keep :]:
                shutil.rmtree(outdated)
        return final

    def versions(self) -> list[int]:
        """Versions that can be gone back to, ascending."""
        return versions_in(self.folder)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint whose bytes are what was written; None when the run has none yet.

        Raises CheckpointError when there are checkpoints but none can be trusted: starting over would silently
        throw the run's work away. Its files are read when its tensors are: load them before the next `commit`.
        """
        return self._on_all_ranks(self._newest_intact() if self.ranks.is_leader else None)

    def go_back(self, weight_version: int) -> Checkpoint:
        """The checkpoint of that version, which is the newest from here on: later ones are dropped.

        Raises CheckpointError, and drops nothing, when there is none or its bytes are not what was written.
        """
        folder = self.folder / version_name(weight_version)
        if not folder.is_dir():
            held = ", ".join(path.name for path in self._newest_first()) or "none"
            raise CheckpointError(f"there is no checkpoint of version {weight_version}", hint=f"there are: {held}")
        try:
            found = _read(folder, self.run_id, verify=True)
        except UNUSABLE as error:
            raise CheckpointError(f"the checkpoint of version {weight_version} cannot be loaded: {error}") from error
        with self.fence.guard():
            for later in reversed(self.versions()):
                if later > weight_version:
                    shutil.rmtree(self.folder / version_name(later))
        opened = self._on_all_ranks(found)
        assert opened is not None
        return opened

    def _on_all_ranks(self, found: Checkpoint | None) -> Checkpoint | None:
        """What rank 0 found and verified, opened on every rank."""
        self.ranks.send_order(Order.LOAD_CHECKPOINT)
        version = -1 if found is None else found.weight_version
        found_version = int(self.ranks.broadcast(np.array([version]) if self.ranks.is_leader else None)[0])
        if found_version < 0:
            return None
        if not self._sharing.by_all:
            sent = send_index(None if found is None else found.tensors, self.ranks)
            return Checkpoint(self.run_id, found_version, sent)
        return found or _read(self.folder / version_name(found_version), self.run_id, verify=False)

    def _newest_intact(self) -> Checkpoint | None:
        folders = self._newest_first()
        for folder in folders:
            try:
                return _read(folder, self.run_id, verify=True)
            except UNUSABLE as error:
                log.warning("checkpoint_unusable", folder=str(folder), error=str(error))
        if folders:
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints in {self.folder} can be loaded",
                hint="the log names what is wrong with each; restore one from a backup, or start with a new run.dir",
            )
        return None

    def _newest_first(self) -> list[Path]:
        return [self.folder / version_name(version) for version in reversed(self.versions())]


def _find_sharing(folder: Path, ranks: Ranks) -> _Sharing:
    """Who sees a file that rank 0 makes in its folder under a name that was never there before."""
    name = f"{durable.TEMPORARY_PREFIX}seen-{secrets.token_hex(16)}" if ranks.is_leader else ""
    with durable.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if ranks.is_leader:
            (folder / name).touch()
    name = _broadcast_name(name, ranks)
    seen = torch.zeros(ranks.size, dtype=torch.int64)
    # Listed, since a look at one name could be answered by a network mount's cache.
    seen[ranks.rank] = name in {path.name for path in folder.iterdir()}
    ranks.all_reduce_sum(seen)
    if ranks.is_leader:
        (folder / name).unlink()
    sharing = _Sharing(bool(seen[: ranks.size // ranks.replicas].all()), bool(seen.all()))
    log.info("checkpoint_folder", written_by="every rank" if sharing.by_writers else "rank 0", shared=sharing.by_all)
    return sharing


def _broadcast_name(name: str, ranks: Ranks) -> str:
    """Rank 0's name of a file, on every rank."""
    sent = np.frombuffer(name.encode(), np.uint8).astype(np.int64) if ranks.is_leader else None
    return bytes(ranks.broadcast(sent).astype(np.uint8)).decode()


def _done(digest: str) -> Future[str]:
    done: Future[str] = Future()
    done.set_result(digest)
    return done


def _read(folder: Path, run_id: str, *, verify: bool) -> Checkpoint:
    files = CheckpointFolder(folder)
    meta = json.loads(files.meta.read_text())
    if meta["run_id"] != run_id:
        raise CheckpointError(f"it belongs to run {meta['run_id']}, this is {run_id}")
    if folder.name != version_name(int(meta["weight_version"])):
        raise CheckpointError(f"it says that it is version {meta['weight_version']}")
    tensors: dict[str, SavedTensor] = {}
    paths = [files.state_of(number) for number in range(len(meta["digests"]))]
    if wrong := next((name for name, path in zip(meta["digests"], paths, strict=True) if name != path.name), None):
        raise CheckpointError(f"it names {wrong}, which is no state file's name in order")
    if verify:
        _verify(paths, list(meta["digests"].values()))
    for path in paths:
        header = read_header(path)
        for tensor, (first, rows) in json.loads(header.metadata[ROWS]).items():
            tensors.setdefault(tensor, SavedTensor()).add(first, rows, FileTensor(path, header.places[tensor]))
    return Checkpoint(run_id, int(meta["weight_version"]), tensors, _curriculum_in(meta))


def _curriculum_in(meta: Mapping[str, Any]) -> Mapping[str, Any] | None:
    state = meta.get("curriculum")
    if state is None:
        return None
    if digest_bytes(state.encode()) != meta["curriculum_digest"]:
        raise CheckpointError("its choice of prompts has changed since it was written")
    found: Mapping[str, Any] = json.loads(state)
    return found


def _verify(paths: Sequence[Path], digests: Sequence[str]) -> None:
    """CheckpointError names a file whose bytes are not what was written. All are read at once, as disks are fastest."""
    with ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="verify") as readers:
        for path, found, digest in zip(paths, readers.map(digest_file, paths), digests, strict=True):
            if found != digest:
                raise CheckpointError(f"{path.name} has changed since it was written")


def _write_state(
    tensors: Mapping[str, torch.Tensor], rows: Mapping[str, list[int]], path: Path, wait_for_copies: Callable[[], None]
) -> str:
    """The digest of the file, durably written."""
    wait_for_copies()
    try:
        safetensors.torch.save_file(
            {name: t.contiguous() for name, t in tensors.items()}, path, metadata={ROWS: json.dumps(rows)}
        )
    except safetensors.SafetensorError as error:  # how it reports what the operating system refused
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        raise CheckpointError(
            f"the checkpoint of {size} bytes cannot be written to {path.parent.parent}: {error}",
            hint="free some space on this disk, then start again: the run resumes where it was",
        ) from error
    durable.fsync_file(path)
    return digest_file(path)
