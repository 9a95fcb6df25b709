"""What a newcomer does, word for word: the quick start, the notebook, the README with a model of their own.

Each in a folder that has of the checkout only what a clone has, with vLLM on the CPU.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.metadata
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.net import free_port
from services.run_folder import RunFolder
from tests.support import vllm_models
from tests.support.documents import ROOT, blocks, fenced
from tests.support.tokenizers import save_byte_tokenizer

BIN = Path(sys.executable).parent
PACKAGES = ("services", "learner", "generator", "deploy", "studies", "sept")
COMES_UP_WITHIN_S = 1200.0
"""Of what starts an engine, on a machine that does much else."""
LOOK_EVERY_S = 1.0

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(7200)]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh folder; the demo's model is taken from the checkout where it has been pre-trained already."""
    there = tmp_path / "sept"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, there / package, ignore=shutil.ignore_patterns("__pycache__"))
    if (ROOT / ".cache/demo/model").is_dir():
        shutil.copytree(ROOT / ".cache/demo/model", there / ".cache/demo/model")
    (there / ".venv").symlink_to(BIN.parent)
    return there


def environ(clone: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(clone)}


class Shell:
    """One bash in which commands are given one after the other, as in a terminal; each must succeed."""

    def __init__(self, clone: Path) -> None:
        self._bash = subprocess.Popen(
            ["bash"], cwd=clone, env=environ(clone), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._bash.stdin is not None
        with contextlib.suppress(OSError):
            self._bash.stdin.write("kill -INT $(jobs -p) 2> /dev/null; wait\n")
            self._bash.stdin.close()
        self._bash.wait(COMES_UP_WITHIN_S)
        assert self._bash.stdout is not None
        self._bash.stdout.close()

    def give(self, command: str) -> str:
        """What the command printed; a background command prints to its file."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f'{command}\necho "ended with $?"\n')
        self._bash.stdin.flush()
        printed = []
        for line in self._bash.stdout:
            ended = re.search(r"ended with (\d+)$", line.rstrip())
            printed.append(line.removesuffix(ended.group(0) + "\n") if ended else line)
            if ended:
                self.code = int(ended.group(1))
                return "".join(printed)
        raise AssertionError(f"the shell has ended after {command}")

    def succeed(self, command: str) -> str:
        printed = self.give(command)
        assert self.code == 0, f"{command}: {printed}"
        return printed

    def succeed_at_last(self, command: str) -> str:
        """Tried again while what it asks is starting."""
        until = time.monotonic() + COMES_UP_WITHIN_S
        while True:
            printed = self.give(command)
            if self.code == 0 or time.monotonic() > until:
                assert self.code == 0, f"{command}: {printed}"
                return printed
            time.sleep(LOOK_EVERY_S)


def test_the_quick_start(clone: Path) -> None:
    printed: dict[str, str] = {}
    with Shell(clone) as shell:
        for block in fenced(ROOT / "docs/quick-start.md", "sh"):
            for command in block.splitlines():
                is_first_look = command.startswith("sept status")
                printed[command] = (shell.succeed_at_last if is_first_look else shell.succeed)(command)
    first, second = (clone / name for name in ("first.log", "more.log"))
    assert "finished: 30 of 30 rounds" in first.read_text()
    assert "finished: 32 of 32 rounds" in second.read_text()
    said = "".join(printed.values())
    assert "page: http://127.0.0.1:" in said
    assert "pass@8" in said
    assert (clone / "my-model/model.safetensors").stat().st_size > 900_000


def test_the_notebook(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells, in one loop and with `await` at their top, as Jupyter runs them."""
    monkeypatch.chdir(clone)
    cells = json.loads((ROOT / "docs/demo.ipynb").read_text())["cells"]
    names: dict[str, object] = {"__name__": "__main__"}
    printed = io.StringIO()

    async def run() -> None:
        for cell in cells:
            if cell["cell_type"] == "code":
                code = compile("".join(cell["source"]), "demo.ipynb", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                result = eval(code, names)  # noqa: S307 - our own
                if inspect.isawaitable(result):
                    await result

    with contextlib.redirect_stdout(printed):
        asyncio.run(run())
    assert names["stopped_by"] is None
    ((before, after),) = re.findall(r"pass@1 ([\d.]+)% at version 0, ([\d.]+)% at version", printed.getvalue())
    assert float(after) > float(before) + 5


def own_model_commands() -> list[str]:
    """Of the README: run, export, and serve with what is installed here."""
    section = (ROOT / "README.md").read_text().split("## Your own model")[1]
    (first,) = (block for block in blocks(ROOT / "README.md") if "model.path=MODEL" in block)
    assert first.splitlines()[0] in section
    run, export, *servers = (line.partition(" #")[0].strip() for line in first.splitlines())
    on_gpu, on_cpu = servers
    return [run, export, on_gpu if has_package("vllm") else on_cpu]


def has_package(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


@contextlib.contextmanager
def served(command: str, clone: Path) -> Iterator[str]:
    """The address of the server that the command starts, once it answers."""
    port = free_port()
    env = environ(clone) | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with (clone / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [*command.split(), "--port", str(port)], cwd=clone, env=env, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            until = time.monotonic() + COMES_UP_WITHIN_S
            while True:
                assert server.poll() is None, (clone / "serve.log").read_text()[-3000:]
                assert time.monotonic() < until
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=60).is_success:
                        break
                time.sleep(LOOK_EVERY_S)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(120)


def test_the_readme_with_a_model_and_a_file_of_ones_own(clone: Path) -> None:
    """From the two to an exported model that `vllm serve` loads."""
    vllm_models.write_tiny_model(clone / "mine/model")
    save_byte_tokenizer(clone / "mine/model")
    rows = [{"frage": "?", "question": f"How much is {number} + {number}?"} for number in range(40)]
    (clone / "mine/sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, export, serve = (
        command.replace("=MODEL", "=mine/model").replace("PROMPTS.jsonl", "mine/sums.jsonl")
        for command in own_model_commands()
    )
    with Shell(clone) as shell:
        assert "finished: 3 of 3 rounds" in shell.succeed(run)
        assert "serve it: " in shell.succeed(export)
    assert len(list(RunFolder(clone / "runs/real-cpu").rounds())) == 3
    with served(serve, clone) as address:
        name = httpx.get(f"{address}/v1/models").json()["data"][0]["id"]
        asked = {"model": name, "prompt": "How much is 3 + 3?", "max_tokens": 8, "ignore_eos": True}
        answer = httpx.post(f"{address}/v1/completions", json=asked, timeout=600).json()
    assert answer["usage"]["completion_tokens"] == 8
