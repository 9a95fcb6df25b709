"""Which code a started process executes, wherever it is started and whatever PYTHONPATH names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.same_code import ROOT, sept_command, with_same_code

WHERE = "import sept, services, deploy.endpoints, redis; print(services.__file__, deploy.__file__, redis.__file__)"


@pytest.fixture
def others_code(tmp_path: Path) -> Path:
    """A folder with a person's own modules, which happen to be called as ours and as our dependencies are."""
    for package in ("services", "deploy"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('the code of somebody else')\n")
    for module in ("learner", "redis", "pydantic"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('the code of somebody else')\n")
    return tmp_path


def output_of(*command: str, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_a_part_ignores_what_the_working_directory_and_pythonpath_hold(others_code: Path) -> None:
    env = with_same_code({**os.environ, "PYTHONPATH": str(others_code)})
    assert "sept " in output_of(*sept_command("version"), cwd=others_code, env=env)


def test_a_part_ignores_another_checkout(others_code: Path) -> None:
    (others_code / "sept").mkdir()
    (others_code / "sept/__init__.py").write_text("raise SystemExit('the code of the other checkout')\n")
    env = with_same_code({**os.environ, "PYTHONPATH": str(others_code)})
    assert "sept " in output_of(*sept_command("version"), cwd=others_code, env=env)


@pytest.mark.parametrize("entries", [("{others}", "{root}"), ("{root}", ""), ("", "{root}"), (".", "{root}", "")])
def test_what_a_person_starts_takes_its_modules_from_its_own_folder(
    entries: tuple[str, ...], others_code: Path
) -> None:
    """Python itself puts the working directory first here, and PYTHONPATH before everything that is installed.

    An empty entry is the working directory, too.
    """
    found = os.pathsep.join(entry.format(others=others_code, root=ROOT) for entry in entries)
    env = {**os.environ, "PYTHONPATH": found}
    services, deploy, redis = output_of(sys.executable, "-c", WHERE, cwd=others_code, env=env).split()
    assert Path(services) == ROOT / "services/__init__.py"
    assert Path(deploy) == ROOT / "deploy/__init__.py"
    assert not Path(redis).is_relative_to(others_code)


def test_pythonpath_may_add_modules(tmp_path: Path) -> None:
    (tmp_path / "of_my_own.py").write_text("")
    env = with_same_code({**os.environ, "PYTHONPATH": str(tmp_path)})
    output_of(sys.executable, "-c", "import sept, of_my_own", cwd=tmp_path, env=env)


def test_a_checkout_goes_first_and_an_installation_is_found_by_the_interpreter() -> None:
    given = {"PYTHONPATH": f"/a{os.pathsep}/checkout", "HOME": "/h"}
    assert with_same_code(given, root=Path("/checkout")) == {
        "PYTHONPATH": f"/checkout{os.pathsep}/a",
        "PYTHONSAFEPATH": "1",
        "HOME": "/h",
    }
    assert with_same_code({}, root=Path("/venv/lib/site-packages")) == {"PYTHONSAFEPATH": "1"}
