"""What `sept doctor` finds and says."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from rich.console import Console

from deploy import exit_codes
from deploy.doctor.doctor import (
    check_disk,
    check_fit,
    check_input,
    check_port,
    check_redis,
    check_weight_sync,
    report,
    versions,
)
from deploy.load_settings import load
from deploy.settings import Settings
from learner.input_checks import input_checks
from tests.support import tiny_models
from tests.support.hub import hub_with


def test_the_embedded_server_answers() -> None:
    finding = check_redis()
    assert (finding.status, "speaks Redis" in finding.detail) == ("ok", True)


def test_a_taken_port_fails_with_its_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        finding = check_port("127.0.0.1", taken.getsockname()[1])
    assert (finding.status, finding.remedy) == ("failed", "set services.port to another")


def test_port_0_is_any_port() -> None:
    assert check_port("127.0.0.1", 0).detail == "a free port of 127.0.0.1 is taken"


def test_a_folder_to_be_made_is_judged_by_its_disk(tmp_path: Path) -> None:
    assert str(tmp_path) in check_disk(tmp_path / "a" / "b").detail


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ("", "failed"),
        ("./none", "failed"),
        ("none.jsonl", "failed"),
        ("org/name", "warning"),
        ("org/nome", "failed"),
        (".", "failed"),
        ("a/" * 3000, "failed"),
    ],
)
def test_paths_are_model_folders_or_names_on_the_hub(value: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(None, [f"model.path={value}"], environ={})
    with hub_with("models/org/name") as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        model, prompts = (check_input(check) for check in input_checks(settings))
    assert (model.what, model.status, bool(model.remedy)) == ("model.path", verdict, verdict == "failed")
    assert (prompts.what, prompts.status) == ("data.path", "failed")


def test_prompts_that_a_run_would_refuse_fail_with_their_line(tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"question": "1+1="}\n{"text": "?"}\n')
    settings = load(None, [f"data.path={data}"], environ={})
    finding = check_input(input_checks(settings)[1])
    assert (finding.status, "line 2 has no column that holds a question" in finding.detail) == ("failed", True)


def test_the_report_fails_when_a_run_could_not_start(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    settings = load(None, [f"run.dir={tmp_path}", "services.port=0"], environ={})
    assert report(settings, console) == exit_codes.UNAVAILABLE
    assert isinstance(console.file, io.StringIO)
    assert "set model.path" in console.file.getvalue()


def test_versions_name_sept_and_torch() -> None:
    assert {"python", "sept", "torch"} <= dict(versions()).keys()


ONLY_SEPT = """
from importlib.machinery import PathFinder
found = PathFinder.find_spec
absent = ("torch", "transformers", "tokenizers", "jinja2", "vllm", "ray")
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in absent else found(name, *rest)
from deploy.doctor.doctor import examine, versions
print("sept" in dict(versions()), *(finding.status for finding in examine(None) if finding.what == "PyTorch"))
"""


def test_it_tells_what_is_missing_where_nothing_but_sept_is_installed() -> None:
    done = subprocess.run([sys.executable, "-c", ONLY_SEPT], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["True", "failed"]


def fitting(folder: Path, *sets: str) -> Settings:
    lengths = ["data.max_prompt_tokens=64", "sampling.max_response_tokens=64"]
    return load(None, [f"model.path={tiny_models.save(folder)}", *lengths, *sets], environ={})


def test_a_model_that_fits_is_told_with_the_sequences_its_cache_holds(tmp_path: Path) -> None:
    finding = check_fit(fitting(tmp_path))
    assert (finding.status, "sequences of 128 tokens" in finding.detail) == ("ok", True)


@pytest.mark.parametrize(
    ("setting", "verdict", "remedy"),
    [
        ("generator.cpu_cache_gib=0.0000001", "failed", "raise generator.cpu_cache_gib"),
        ("generator.cpu_cache_gib=1000000", "failed", "a smaller model"),
    ],
)
def test_a_model_that_does_not_fit_comes_with_its_remedy(
    tmp_path: Path, setting: str, verdict: str, remedy: str
) -> None:
    finding = check_fit(fitting(tmp_path, setting))
    assert (finding.status, remedy in finding.remedy) == (verdict, True)


def test_how_weights_travel_is_told() -> None:
    assert "deltas over HTTP" in check_weight_sync().detail
