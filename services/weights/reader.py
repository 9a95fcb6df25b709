"""Reads the published versions of one run from its weight folder.

    weights/00000000/   manifest.json, model.safetensors, config.json, tokenizer.json ...
    weights/00000001/   manifest.json, delta.bin
    weights/00000020/   manifest.json, delta.bin, model.safetensors
    weights/00000021/   manifest.json, adapters.safetensors

A version's folder gets its name in one rename, so a version is complete or absent. The learner is the only writer
(`services.weights.publisher`); any number of processes read at the same time.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from pydantic import ValidationError

from services.contracts import FileKind, WeightManifest
from services.errors import VersionNotFoundError, WeightError
from services.tensors import RawTensor, digest_bytes, read_safetensors
from services.weights.chain import apply_change, change_of, verify_tensors

MANIFEST_NAME = "manifest.json"
SNAPSHOT_NAME = "model.safetensors"
DELTA_NAME = "delta.bin"
ADAPTERS_NAME = "adapters.safetensors"

MAX_VERSION = 99_999_999
"""Folder names have eight digits."""

_SEAL = b',"file_digest":"'

_FOLDER = re.compile(r"[0-9]{8}")


class WeightReader:
    """The versions of one run below one folder."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder = folder
        self.run_id = run_id

    def versions(self) -> list[int]:
        """Visible versions, ascending."""
        if not self.folder.is_dir():
            return []
        folders = [path for path in self.folder.iterdir() if _FOLDER.fullmatch(path.name)]
        return sorted(int(path.name) for path in folders if (path / MANIFEST_NAME).is_file())

    def latest(self) -> WeightManifest | None:
        """The newest version's manifest; None before the first is published."""
        for version in reversed(self.versions()):
            if (manifest := self.find(version)) is not None:
                return manifest  # others were retired or replaced since they were listed
        return None

    def manifest(self, version: int) -> WeightManifest:
        """VersionNotFoundError when the version is absent, WeightError when it is not of this run."""
        path = self.manifest_path(version)
        try:
            status = path.stat()
            manifest = _read_manifest(path, status.st_ino, status.st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise VersionNotFoundError(
                f"weight version {version} is not in the store", hint="ask for the latest version"
            ) from error
        except ValidationError as error:
            raise WeightError(f"{path} is not a manifest: {error.error_count()} errors") from error
        if manifest.run_id != self.run_id or manifest.weight_version != version:
            raise WeightError(
                f"{path} is version {manifest.weight_version} of run {manifest.run_id!r}, not of {self.run_id!r}",
                hint="start the run in a folder of its own",
            )
        return manifest

    def find(self, version: int) -> WeightManifest | None:
        """As `manifest`, but None when the version is absent."""
        try:
            return self.manifest(version)
        except VersionNotFoundError:
            return None

    def parent_of(self, manifest: WeightManifest) -> WeightManifest:
        """The version that the manifest's change applies to; WeightError when another one has taken its place."""
        if manifest.parent_version is None:
            raise WeightError(f"weight version {manifest.weight_version} has neither snapshot nor parent")
        parent = self.manifest(manifest.parent_version)
        if parent.digest != manifest.parent_digest:
            raise WeightError(
                f"weight version {manifest.weight_version} continues another version {parent.weight_version}: "
                f"{manifest.parent_digest} is not {parent.digest}"
            )
        return parent

    def file_path(self, version: int, name: str) -> Path:
        """Path of one of the version's files; only names that its manifest lists are ever opened."""
        entry = next((entry for entry in self.manifest(version).files if entry.name == name), None)
        if entry is None:
            raise VersionNotFoundError(f"weight version {version} has no file {name[:128]!r}")
        return self.folder_of(version) / entry.name

    def load(self, version: int) -> dict[str, RawTensor]:
        """Nearest snapshot, then its changes; DigestError unless every tensor has the digest in the manifest."""
        target = self.manifest(version)
        chain = [target]
        while chain[-1].file(FileKind.SNAPSHOT) is None:
            chain.append(self.parent_of(chain[-1]))
        start = chain.pop()
        tensors = read_safetensors(self.folder_of(start.weight_version) / SNAPSHOT_NAME)
        owned: set[str] = set()
        for step in reversed(chain):
            change = change_of(step)
            apply_change(change.kind, self.folder_of(step.weight_version) / change.name, tensors, owned)
        verify_tensors(tensors, target.tensors)
        return tensors

    def manifest_path(self, version: int) -> Path:
        """Where the version's manifest is, if it exists."""
        return self.folder_of(version) / MANIFEST_NAME

    def folder_of(self, version: int) -> Path:
        """Folder of a version, whether it exists or not."""
        return self.folder / f"{version:08d}"


@functools.lru_cache(maxsize=256)
def _read_manifest(path: Path, _inode: int, _mtime_ns: int) -> WeightManifest:
    """Parsed once per file, as every poll asks for the newest. A replaced file has another inode or time."""
    body, seal, digest = path.read_bytes().rpartition(_SEAL)
    if seal and digest != b'%b"}' % digest_bytes(body).encode():
        raise WeightError(f"{path} has other bytes than were written")
    return WeightManifest.model_validate_json(body + b"}" if seal else digest)


def sealed(manifest: WeightManifest) -> bytes:
    """The content of a manifest's file: its JSON, whose last member is the digest of all that is before it."""
    body = manifest.model_dump_json().encode().removesuffix(b"}")
    return b'%b%b%b"}' % (body, _SEAL, digest_bytes(body).encode())
