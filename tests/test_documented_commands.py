"""Every command in the documents is one: `sept` understands it, and what else it names exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cyclopts import CycloptsError

from deploy.load_settings import from_values, load
from deploy.settings import Settings, setting_fields
from sept.cli import app
from services.errors import ConfigError
from tests.support.documents import COMMAND_PAGES, ROOT, blocks, command_lines, fenced

PLACEHOLDERS = {"N": "3", "VERSION": "3", "ROLE": "watch", "SHELL": "bash"}
"""What a word in capitals stands for where any word would not do."""
MISTYPED = {"training.rouds"}
"""Shown because it is refused."""
INVOCATION = re.compile(r"(?:^|[\s'])(?:\.venv/bin/)?sept (?=[a-z-])((?:(?! {2}| #|[;&|>']).)*)")
SETTING = re.compile(r"--set ([\w.]+)=")

by_page = pytest.mark.parametrize("page", COMMAND_PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def in_blocks(page: Path) -> Iterator[str]:
    """`sept` with its arguments, from code blocks."""
    for line in command_lines(page):
        if not re.match(r"(sept|hint|model|measure it): |\"\"\"", line) and "`sept" not in line:
            yield from INVOCATION.findall(line)


def in_sentences(page: Path) -> Iterator[str]:
    """The same from code within sentences, which may name a command or an option without its argument."""
    for code in re.findall(r"`([^`]+)`", re.sub(r"^( {4}|```).*$", "", page.read_text(), flags=re.MULTILINE)):
        one_line = " ".join(code.split())
        if one_line.startswith(("sept ", ".venv/bin/sept ")):
            yield from INVOCATION.findall(one_line)


def arguments(invocation: str) -> list[str]:
    return [PLACEHOLDERS.get(word, word) for word in shlex.split(invocation) if word not in ("...", "[FOLDER")]


@by_page
def test_sept_understands_every_command(page: Path) -> None:
    wrong = [problem for invocation in in_blocks(page) if (problem := problem_of(invocation))]
    named = [problem for invocation in in_sentences(page) if (problem := problem_of(invocation))]
    assert wrong + [problem for problem in named if "requires an argument" not in problem] == []


def problem_of(invocation: str) -> str:
    """Why `sept` refuses it; empty: it does not."""
    try:
        app.parse_args(arguments(invocation), print_error=False, exit_on_error=False)
    except CycloptsError as error:
        return f"{invocation}: {error}"
    return ""


def test_the_commands_are_found() -> None:
    found = {str(page.relative_to(ROOT)): [*in_blocks(page), *in_sentences(page)] for page in COMMAND_PAGES}
    assert "scale generators 3 --run runs/mine" in found["docs/own-model-gpu.md"]
    assert "pause" in found["README.md"]
    assert any(one.startswith("generator --config run.toml --set run.dir=/tmp") for one in found["docs/slurm.md"])
    assert sum(map(len, found.values())) > 100
    assert "no_such_option" in problem_of("run x.toml --no_such_option")


@by_page
def test_settings_that_commands_set_exist(page: Path) -> None:
    named = set(SETTING.findall(page.read_text())) - {"section.key"} - MISTYPED
    assert named <= set(setting_fields())


@by_page
def test_config_files_that_a_page_shows_are_accepted(page: Path) -> None:
    for block in blocks(page):
        if re.match(r"(include = .*\s+)?(#.*\s+)*\[(\w+)\]\n", block) and "=" in block:
            values = tomllib.loads(block)
            values.pop("include", None)
            assert set(values) <= set(Settings.model_fields), block
            assert from_values(values, str(page))


@by_page
def test_settings_within_sentences_are_accepted(page: Path) -> None:
    """`training.data = "fixed"` and the like; what only holds together with others is left out."""
    wrong = []
    for key, value in re.findall(r"`(\w+\.\w+) = ([^`]+)`", page.read_text()):
        if key not in setting_fields():
            wrong.append(key)
        elif re.fullmatch(r'"[^"]*"|-?[\d.e-]+|true|false', value):
            try:
                load(None, [f"{key}={value.strip(chr(34))}"], environ={})
            except ConfigError as error:
                wrong += [error.message] if "is not valid" in error.message else []
    assert wrong == []


@by_page
def test_make_targets_modules_and_compose_services_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    profiles = {name for service in compose.values() for name in service.get("profiles", ())}
    text = page.read_text()
    code = "\n".join([*command_lines(page), *re.findall(r"`([^`]+)`", text)])
    targets = re.findall(r"^make ([a-z-]+)", code, re.MULTILINE)
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
    modules = re.findall(r"python -m ((?:benchmarks|studies|deploy|tests)(?:\.[a-z_]+)*)(?![.\w])", code)
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    assert set(re.findall(r"docker compose.*--profile (\w+)", code)) <= profiles
    assert set(re.findall(r"docker compose.*--scale ([\w-]+)=", code)) <= set(compose)


@pytest.mark.parametrize(
    "page", [page for page in COMMAND_PAGES if fenced(page, "python")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_examples_in_python_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as a person would type them, in an empty folder beside the configs."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    for number, example in enumerate(fenced(page, "python")):
        exec(compile(f"from __future__ import annotations\n{example}", f"{page.name} {number}", "exec"), names)  # noqa: S102
    assert len(names) > 5
