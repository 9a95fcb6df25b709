import json
import stat
from pathlib import Path

import pytest

from services.errors import ConfigError
from services.run_folder import RunFolder, RunIdentity, version_name
from tests.support.recorded_run import metrics


def test_the_run_keeps_its_identity(tmp_path: Path) -> None:
    run_id = RunFolder(tmp_path / "my run!").create().run_id
    assert RunFolder(tmp_path / "my run!").create().run_id == run_id
    assert run_id.startswith("my-run-")


@pytest.mark.parametrize("kept_by", ["checkpoint", "version"])
@pytest.mark.parametrize("damaged", ["", "{}", '{"run_id": ', "\0\0\0"])
def test_a_run_whose_identity_is_damaged_is_known_by_what_it_has_made(
    kept_by: str, damaged: str, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run").create()
    name = folder.run_id
    if kept_by == "checkpoint":
        folder.checkpoint_of(3).path.mkdir()
        folder.checkpoint_of(3).meta.write_text(json.dumps({"run_id": name}))
    else:
        (folder.weights / "00000000").mkdir()
        (folder.weights / "00000000" / "manifest.json").write_text(json.dumps({"run_id": name}))
    folder.identity.write_text(damaged)
    assert RunFolder(tmp_path / "run").create().run_id == name
    folder.identity.unlink()
    assert RunFolder(tmp_path / "run").create().run_id == name


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json does not name a run"):
        _ = RunFolder(tmp_path).run_id


def test_no_metrics_yet_means_no_rounds(tmp_path: Path) -> None:
    assert list(RunFolder(tmp_path).create().rounds()) == []


def test_checkpointed_versions_are_those_with_a_whole_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    assert folder.checkpointed() == []
    for version in (12, 3, 1_000_000):
        folder.checkpoint_of(version).path.mkdir()
    (folder.checkpoints / ".partial-v000013").mkdir()
    assert folder.checkpointed() == [3, 12, 1_000_000]


def test_rollout_files_come_in_the_order_of_rounds(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.rollout_files() == []
    folder.create()
    for round_ in (11, 2):
        folder.rollouts_of(round_).touch()
    (folder.rollouts / "notes.txt").touch()
    assert folder.rollout_files() == [(2, folder.rollouts_of(2)), (11, folder.rollouts_of(11))]


def test_logs_are_found_by_part(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.log_files() == {}
    folder.create()
    folder.log_of("services").touch()
    folder.log_of("learner").touch()
    assert list(folder.log_files()) == ["learner", "services"]


def test_what_is_kept_by_version_sorts_by_version() -> None:
    assert [version_name(version) for version in (0, 12)] == ["v000000", "v000012"]
    assert RunFolder(Path("runs/x")).evaluation_of(12).results == Path("runs/x/evaluations/v000012/results.json")


def test_lines_that_are_cut_short_or_of_another_release_are_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    line = metrics(0).as_line()
    folder.metrics.write_text(f'{line}\n{line[:-1]}, "surprise": 1}}\n{metrics(2).as_line()}\n{line[:40]}')
    assert [found.round for found in folder.rounds()] == [0, 2]


def test_a_new_runs_folder_is_its_owners_alone_and_an_older_one_stays_as_it_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.identity_key.stat().st_mode) == 0o600
    folder.path.chmod(0o750)  # its owner lets a group in
    assert RunFolder(folder.path).create().run_identity == folder.run_identity
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o750


def test_two_runs_cannot_prove_each_others_identity(tmp_path: Path) -> None:
    one, other = (RunFolder(tmp_path / name / "run").create().run_identity for name in "ab")
    assert one.proof("0" * 32) != one.proof("1" * 32)
    assert RunIdentity(one.run_id, other.key).proof("0" * 32) != one.proof("0" * 32)
    assert other.key.decode() not in repr(other)
