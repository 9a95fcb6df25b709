from pathlib import Path

import pytest

from services.errors import ConfigError
from services.run_folder import RunFolder


def test_the_run_keeps_its_identity(tmp_path: Path) -> None:
    run_id = RunFolder(tmp_path / "my run!").create().run_id
    assert RunFolder(tmp_path / "my run!").create().run_id == run_id
    assert run_id.startswith("my-run-")


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json does not name a run"):
        _ = RunFolder(tmp_path).run_id


def test_no_metrics_yet_means_no_rounds(tmp_path: Path) -> None:
    assert list(RunFolder(tmp_path).create().rounds()) == []
