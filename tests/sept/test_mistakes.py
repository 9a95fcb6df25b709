"""Ten mistakes of a first day: docs/troubleshooting.md shows what each prints, and this is what it prints."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import numpy as np
import pytest

from deploy import exit_codes
from deploy.load_settings import load
from deploy.local.supervisor import Supervisor
from deploy.locks import run_lock
from deploy.resolved_settings import write_resolved
from sept.cli import main
from services import durable
from services.run_folder import RunFolder, version_name
from services.tensors import RawTensor
from services.weights.publisher import WeightPublisher
from tests.support import tiny_models
from tests.support.endpoint import open_endpoint
from tests.support.hub import hub_away, hub_with
from tests.support.recorded_run import metrics
from tests.support.supervised_parts import STUBBORN, Asked, watching

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
HOME = "/home/you"
"""Where the commands of the page are given."""
HEAVY = ("torch", "transformers", "vllm", "ray", "datasets")
PROCESSOR_S = 3.0
CONFIG = """
[run]
dir = "runs/mine"
[model]
path = "model"
[data]
path = "prompts.jsonl"
[training]
rounds = 3
device = "cpu"
[generator]
engine = "scripted"
[services]
port = 0
"""


class Shown(NamedTuple):
    """A command of the page and what follows it, with single spaces."""

    command: str
    output: str


def one_line(text: str) -> str:
    return " ".join(text.split())


def section() -> str:
    return PAGE.read_text().split("## Ten first mistakes")[1].split("\n## ")[0]


def shown_by_the_page() -> list[Shown]:
    """The page's commands, each with the indented lines that follow it."""
    found = []
    for block in section().split("\n    $ ")[1:]:
        command, _, rest = block.partition("\n")
        output = re.split(r"\n(?! {4}|$)", rest, maxsplit=1, flags=re.MULTILINE)[0]
        found.append(Shown(command, one_line(output)))
    return found


def shown_for(command: str) -> Shown:
    (found,) = (shown for shown in shown_by_the_page() if shown.command.startswith(command))
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the person has: a model, prompts, texts that are no prompts, a config."""
    world = tmp_path_factory.mktemp("you")
    tiny_models.save_with_words(world / "model")
    (world / "prompts.jsonl").write_text('{"question": "1+1="}\n' * 4)
    (world / "texts.jsonl").write_text('{"text": "1+1="}\n')
    (world / "my-run.toml").write_text(CONFIG)
    return world


@pytest.fixture
def world(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(saved)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return saved


@pytest.fixture
def finished(world: Path) -> RunFolder:
    """runs/mine as a run of three rounds leaves it."""
    folder = RunFolder(world / "runs" / "mine").create()
    write_resolved(load(world / "my-run.toml", environ={}), folder.config)
    folder.note_rounds_total(3)
    rounds = [metrics(number, loss=1.4 + 0.00135 * number) for number in range(3)]
    durable.write_file(folder.metrics, "".join(one.model_dump_json() + "\n" for one in rounds))
    for version in (2, 3):
        (folder.checkpoints / version_name(version)).mkdir(parents=True, exist_ok=True)
    store = WeightPublisher(folder.weights, folder.run_id)
    for version in set(range(3)) - set(store.versions()):
        store.publish(version, {"w": RawTensor("BF16", (1,), np.full(2, version, np.uint8))})
    return folder


def as_shown(world: Path, text: str) -> str:
    return one_line(text.replace(str(world.resolve()), HOME))


def check(shown: Shown, world: Path, capsys: pytest.CaptureFixture[str], code: int) -> None:
    """The command ends with this code, prints what the page shows, and takes little of the processor."""
    capsys.readouterr()
    started = time.process_time()
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(shown.command)[1:])
    printed = capsys.readouterr()
    assert as_shown(world, printed.out + printed.err) == shown.output
    assert ended.value.code == code
    assert time.process_time() - started < PROCESSOR_S


def test_the_page_shows_ten() -> None:
    assert re.findall(r"^\*\*(\d+)\. ", section(), re.MULTILINE) == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("sept run my-rnu.toml", exit_codes.BAD_CONFIG),
        ("sept run my-run.toml --set training.rouds", exit_codes.BAD_CONFIG),
        ("sept run my-run.toml --set data.path", exit_codes.BAD_INPUT),
    ],
)
def test_a_wrong_path_a_typo_and_data_without_questions(
    world: Path, capsys: pytest.CaptureFixture[str], command: str, code: int
) -> None:
    check(shown_for(command), world, capsys, code)


def test_a_model_that_is_nowhere(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_with("models/Qwen/Qwen2.5-0.5B") as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        check(shown_for("sept run my-run.toml --set model.path=Qwen"), world, capsys, exit_codes.BAD_INPUT)


def test_a_model_that_nobody_can_be_asked_for(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub_away())
    check(shown_for("sept run my-run.toml --set model.path=somebody"), world, capsys, exit_codes.UNAVAILABLE)


def test_a_port_that_is_taken(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = shown_for("sept run my-run.toml --set services.port")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        here = Shown(shown.command.replace("8400", port), shown.output.replace("8400", port))
        check(here, world, capsys, exit_codes.UNAVAILABLE)


def test_a_folder_that_is_being_run(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = (shown for shown in shown_by_the_page() if shown.command == "sept run my-run.toml")
    folder = RunFolder(world / "runs" / "mine").create()
    with run_lock(folder):
        folder.supervisor_lock.write_text("process 4711\n")
        check(first, world, capsys, exit_codes.UNAVAILABLE)


@pytest.mark.usefixtures("finished")
def test_a_finished_run_and_versions_that_there_are_not(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, again = (shown for shown in shown_by_the_page() if shown.command == "sept run my-run.toml")
    check(again, world, capsys, exit_codes.OK)
    check(shown_for("sept rollback"), world, capsys, exit_codes.BAD_CONFIG)
    check(shown_for("sept export"), world, capsys, exit_codes.FAILED)


async def test_a_bad_token(world: Path, redis_url: str) -> None:
    async with open_endpoint(world / "runs" / "guarded", redis_url, token="t" * 32) as endpoint:
        answer = await endpoint.http(token="MISTYPED").get("/v1/status")
        login = await endpoint.http().post("/login", data={"token": "MISTYPED"})
    assert (answer.status_code, answer.text) == (401, shown_for("curl").output)
    (words,) = re.findall(r'The page\'s login says: "(.+?)"', section())
    assert login.status_code == 401
    assert f">{words}<" in login.text


async def test_ctrl_c_twice(tmp_path: Path) -> None:
    async with watching(tmp_path) as watcher:
        supervisor = Supervisor(
            watcher.plan(STUBBORN), run=watcher.folder, generators_target=Asked(), log=watcher.log, same_stop_s=0.0
        )
        run = asyncio.create_task(supervisor.run())
        await watcher.until_up("learner")
        supervisor.request_stop(signal.SIGINT)
        supervisor.request_stop(signal.SIGINT)
        assert await run == signal.SIGINT
    shown = re.findall(r"^ {4}(stopping\w* .+)$", section(), re.MULTILINE)
    assert [text for text in watcher.said if text.startswith("stopping")] == shown


def test_none_of_them_imports_anything_heavy(world: Path) -> None:
    """In a process of its own; the hub is a port at which nobody listens."""
    refused = [shown.command for shown in shown_by_the_page() if "sept: " in shown.output and "run my" in shown.command]
    code = f"""
import shlex, sys
from sept.cli import main
for command in [shlex.split(command)[1:] for command in {refused[:5]!r}]:
    try:
        main(command)
    except SystemExit as ended:
        assert ended.code, command
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    environ = {"PYTHONPATH": str(PAGE.parents[1]), "HF_ENDPOINT": hub_away()}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, env=environ, cwd=world
    )
    assert done.stdout.strip() == "[]"
