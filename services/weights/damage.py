"""Finds versions whose bytes are not what was written, and versions that can no longer be built because of them."""

from __future__ import annotations

from services.contracts import FileKind, WeightManifest
from services.errors import WeightError
from services.tensors import digest_file
from services.weights.reader import WeightReader


def find_damage(store: WeightReader) -> dict[int, str]:
    """Version -> what is wrong with it, for every version that no generator can build. Reads all bytes of the store.

    Version 0, which holds the model's files, belongs to every store that has any. A version can be built when its files
    are as its manifest says, and it has a snapshot or its parent can be built.
    """
    versions = store.versions()
    damaged: dict[int, str] = {} if 0 in versions or not versions else {0: "it is gone"}
    sound: dict[int, WeightManifest] = {}
    for version in versions:
        try:
            manifest = store.manifest(version)
        except WeightError as error:
            damaged[version] = error.message
            continue
        fault = _fault_of_files(store, manifest) or _fault_of_parent(sound, manifest)
        if fault:
            damaged[version] = fault
        else:
            sound[version] = manifest
    return damaged


def _fault_of_files(store: WeightReader, manifest: WeightManifest) -> str:
    for entry in manifest.files:
        path = store.folder_of(manifest.weight_version) / entry.name
        if not path.is_file():
            return f"{entry.name} is gone"
        if (size := path.stat().st_size) != entry.size_bytes:
            return f"{entry.name} has {size} bytes instead of {entry.size_bytes}"
        if digest_file(path) != entry.digest:
            return f"{entry.name} has other bytes than were written"
    return ""


def _fault_of_parent(sound: dict[int, WeightManifest], manifest: WeightManifest) -> str:
    if manifest.file(FileKind.SNAPSHOT) is not None:
        return ""
    parent = None if manifest.parent_version is None else sound.get(manifest.parent_version)
    if parent is not None and parent.digest == manifest.parent_digest:
        return ""
    return f"it is made of version {manifest.parent_version}, which is not there as it was"
