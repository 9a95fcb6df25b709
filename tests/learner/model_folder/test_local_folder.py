"""Models that are on this machine are found, those in the cache of the hub too."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from learner.model_folder.local_folder import local_folder

COMMIT = "0" * 40


def cache(monkeypatch: pytest.MonkeyPatch, root: Path, *files: str) -> Path:
    """The snapshot of acme/small in a cache of the hub's own layout."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    repository = root / "models--acme--small"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in files:
        (snapshot / name).write_text("{}")
    return snapshot


def test_a_model_in_the_cache_is_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache(monkeypatch, tmp_path, "config.json", "model.safetensors")
    assert local_folder("acme/small") == snapshot
    assert local_folder("acme/other") is None


def test_a_model_that_is_cached_in_part_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache(monkeypatch, tmp_path, "config.json")
    assert local_folder("acme/small") is None
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one", "b": "two"}}')
    (snapshot / "one").touch()
    assert local_folder("acme/small") is None
    (snapshot / "two").touch()
    assert local_folder("acme/small") == snapshot


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000, "no such/folder at all"])
def test_what_names_no_model_is_nowhere(path: str) -> None:
    assert local_folder(path) is None


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert local_folder(str(tmp_path)) == tmp_path
