"""The form in which a version that was published whole is sent: a delta, adapters, or only a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from services.contracts import FileKind, TensorEntry, WeightManifest
from services.tensors import Tensors, encoded_bytes, read_safetensors
from services.weights import adapters, delta
from services.weights.reader import SNAPSHOT_NAME, WeightReader

Held = tuple[WeightManifest, Tensors]
"""A version that is in memory."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What makes a version of another: a delta, or the tensors of a file of adapters."""

    parent: WeightManifest
    content: bytes | Tensors

    @property
    def kind(self) -> FileKind:
        return FileKind.DELTA if isinstance(self.content, bytes) else FileKind.ADAPTERS

    @property
    def size_bytes(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else encoded_bytes(self.content)


class ChangeChooser:
    """Chooses for one store. The first version that can be sent both as adapters and as a delta decides for both."""

    def __init__(self, store: WeightReader) -> None:
        self._store = store
        self._preferred: FileKind | None = None

    def choose(
        self, version: int, entries: Sequence[TensorEntry], tensors: Tensors, packed: Tensors | None, held: Held | None
    ) -> Change | None:
        """The delta or the adapters (`packed`) to send; None where only a snapshot will do.

        `held` is used where it is the parent, which else is read from its files.
        """
        by_adapters = None
        if packed and self._preferred is not FileKind.DELTA:
            by_adapters = self._adapters(entries, tensors, packed)
        if by_adapters is not None and self._preferred is FileKind.ADAPTERS:
            return by_adapters
        by_delta = self._delta(version - 1, entries, tensors, held)
        if by_adapters is None or by_delta is None:
            return by_adapters or by_delta
        chosen = min(by_adapters, by_delta, key=lambda change: change.size_bytes)
        self._preferred = chosen.kind
        log.info(
            "update_kind_chosen",
            kind=chosen.kind.value,
            adapters_bytes=by_adapters.size_bytes,
            delta_bytes=by_delta.size_bytes,
        )
        return chosen

    def _delta(
        self, parent_version: int, entries: Sequence[TensorEntry], tensors: Tensors, held: Held | None
    ) -> Change | None:
        """The delta, unless it has no parent to apply to or would not be smaller than a snapshot."""
        parent = self._store.find(parent_version)
        if parent is None or _layout(parent.tensors) != _layout(entries):
            return None
        known = held[1] if held is not None and held[0].digest == parent.digest else self._store.load(parent_version)
        change = delta.encode(known, tensors)
        return Change(parent, change) if len(change) < parent.full_bytes else None

    def _adapters(self, entries: Sequence[TensorEntry], tensors: Tensors, packed: Tensors) -> Change | None:
        """The adapters, if version 0 exists and they make exactly these tensors of it, as every mirror needs."""
        base = self._store.find(0)
        if base is None or _layout(base.tensors) != _layout(entries):
            return None
        names = set(adapters.adapted(packed))
        frozen = [[entry for entry in side if entry.name not in names] for side in (base.tensors, entries)]
        base_tensors = read_safetensors(self._store.folder_of(0) / SNAPSHOT_NAME)
        if frozen[0] != frozen[1] or any(True for _ in adapters.decode(base_tensors, tensors, packed)):
            log.warning("adapters_not_sent", reason="version 0 with the adapters is not what is published")
            return None
        return Change(base, packed)


def _layout(entries: Sequence[TensorEntry]) -> list[tuple[str, str, tuple[int, ...]]]:
    return sorted((entry.name, entry.dtype, entry.shape) for entry in entries)
