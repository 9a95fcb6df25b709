from pathlib import Path

import pytest

from services.errors import ConfigError
from services.run_folder import RunFolder
from tests.support.recorded_run import metrics


def test_the_run_keeps_its_identity(tmp_path: Path) -> None:
    run_id = RunFolder(tmp_path / "my run!").create().run_id
    assert RunFolder(tmp_path / "my run!").create().run_id == run_id
    assert run_id.startswith("my-run-")


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json does not name a run"):
        _ = RunFolder(tmp_path).run_id


def test_no_metrics_yet_means_no_rounds(tmp_path: Path) -> None:
    assert list(RunFolder(tmp_path).create().rounds()) == []


def test_lines_that_are_cut_short_or_of_another_release_are_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    line = metrics(0).as_line()
    folder.metrics.write_text(f'{line}\n{line[:-1]}, "surprise": 1}}\n{metrics(2).as_line()}\n{line[:40]}')
    assert [found.round for found in folder.rounds()] == [0, 2]
