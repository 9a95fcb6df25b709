"""Exporting a published version as a model folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.errors import UnavailableError, VersionNotFoundError
from services.run_folder import RunFolder
from services.tensors import RawTensor, read_safetensors
from services.weights import export
from services.weights.export import export_version, in_ranges
from services.weights.publisher import WeightPublisher


def tensors(fill: int) -> dict[str, RawTensor]:
    return {"w": RawTensor("BF16", (2, 3), np.full(12, fill, dtype=np.uint8))}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run").create()
    config = tmp_path / "config.json"
    config.write_text("{}")
    store = WeightPublisher(folder.weights, folder.run_id)
    store.publish(0, tensors(0), {"config.json": config, "additional_chat_templates/rag.jinja": config})
    store.publish(1, tensors(1))
    return folder


def test_the_newest_version_is_exported_with_its_model_files(folder: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export_version(folder, out) == 1
    assert (out / "config.json").read_text() == "{}"
    assert (out / "additional_chat_templates" / "rag.jinja").read_text() == "{}"
    assert read_safetensors(out / "model.safetensors")["w"].data.tolist() == [1] * 12


def test_an_older_version_is_exported_by_number(folder: RunFolder, tmp_path: Path) -> None:
    assert export_version(folder, tmp_path / "out", 0) == 0


def test_a_version_that_is_not_there_is_refused_and_nothing_is_left(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(VersionNotFoundError, match="version 7") as caught:
        export_version(folder, tmp_path / "out", 7)
    assert caught.value.hint == "it holds 0 to 1"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("numbers", "text"), [((3,), "3"), ((0, 1, 2), "0 to 2"), ((0, 10, 33, 34, 35), "0, 10, 33 to 35")]
)
def test_numbers_are_told_in_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert in_ranges(numbers) == text


def test_a_folder_that_exists_is_not_overwritten(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="exists already"):
        export_version(folder, tmp_path)


def test_a_run_without_versions_says_so(tmp_path: Path) -> None:
    with pytest.raises(VersionNotFoundError, match="no version yet"):
        export_version(RunFolder(tmp_path / "empty").create(), tmp_path / "out")


def test_an_export_leaves_the_run_its_disk(folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "KEPT_FREE_BYTES", 1 << 60)
    with pytest.raises(UnavailableError, match=r"must leave 1152921504\.61 GB free at .* which has"):
        export_version(folder, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()
