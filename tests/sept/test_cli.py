"""The sept command: fast and light help, errors in words, exit codes, debug."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import exit_codes
from sept.cli import app, main
from services.errors import CheckpointError, ConfigError, DataError, DeadlineError, SeptError, UnavailableError

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "vllm", "ray", "redis", "fastapi", "pydantic", "numpy", "datasets", "nicegui")
COMMANDS = [name for name in app if not name.startswith("-")]
STARTED_BY_OTHERS = {"services", "learner", "evaluator", "version"}
"""Commands that compose, Ray and `sept run` use, or that explain themselves."""


def sept(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sept", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60, check=False)


def exit_code_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from sept.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"
    assert all(command in done.stdout for command in COMMANDS)


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in set(COMMANDS) - STARTED_BY_OTHERS:
        assert f"sept {command}" in readme, command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(command, "--help") == exit_codes.OK
    assert f"sept {command}" in capsys.readouterr().out
    assert app[command].help


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("runn",), "runn"),
        (("run",), "requires an argument"),
        (("run", "none.toml"), "none.toml does not exist"),
        (("scale", "generators", "many"), "many"),
        (("run", "deploy/config/demo.toml", "--set", "training.tau=1"), "did you mean training.tau_t?"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(*arguments) == exit_codes.BAD_CONFIG
    error = capsys.readouterr().err
    assert says in error
    assert "hint:" in error
    assert "Traceback" not in error


def test_set_may_be_given_often(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("run", "deploy/config/demo.toml", "--set", "run.seed=1", "--set", "training.steps_per_round=3")
    assert exit_code_of(*arguments) == exit_codes.BAD_CONFIG
    assert "training.steps_per_round (3)" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("--version") == exit_codes.OK
    assert capsys.readouterr().out == importlib.metadata.version("sept") + "\n"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ConfigError):
        main(["--debug", "run", "none.toml"])


def test_status_without_any_run_says_so(tmp_path: Path) -> None:
    done = sept("status", cwd=tmp_path)
    assert done.returncode == exit_codes.BAD_CONFIG
    assert "there is no run under" in done.stderr


def test_a_part_without_a_run_to_join_says_so(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[run]\ndir = "{tmp_path / "run"}"\n[generator]\nengine = "scripted"\n')
    done = sept("generator", "--config", str(config))
    assert done.returncode == exit_codes.BAD_CONFIG
    assert "no run is active" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), exit_codes.BAD_CONFIG),
        (DataError("x"), exit_codes.BAD_INPUT),
        (CheckpointError("x"), exit_codes.BAD_INPUT),
        (UnavailableError("x"), exit_codes.UNAVAILABLE),
        (DeadlineError("Redis", "an answer", 3.0), exit_codes.UNAVAILABLE),
        (SeptError("x"), exit_codes.FAILED),
        (ZeroDivisionError(), exit_codes.FAILED),
    ],
)
def test_exit_codes_tell_what_went_wrong(error: Exception, code: int) -> None:
    assert exit_codes.code_of(error) == code


def test_a_part_leaves_without_looking_for_cycles() -> None:
    """Whatever it has imported is out of the collector's sight when the interpreter ends."""
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 10_000))
from sept.cli import main
main(["version"])
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert ended.stdout.splitlines()[-1] == "True"


def test_exit_codes_in_words() -> None:
    assert [exit_codes.in_words(code) for code in (3, -9)] == ["exit code 3", "killed by SIGKILL"]
