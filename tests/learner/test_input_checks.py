"""What a person gives a run is checked before it starts: quickly, without weights, and with one clear refusal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import learner.input_checks as input_checks_module
from learner.config import LearnerSettings
from learner.input_checks import check_inputs, input_checks
from services.errors import SeptError, UnavailableError
from tests.support import tiny_models
from tests.support.hub import hub_away, hub_with
from tests.support.tokenizers import save_byte_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_tokenizer(tiny_models.save(tmp_path_factory.mktemp("saved")))


@pytest.fixture
def world(saved: Path, tmp_path: Path) -> Path:
    """model/, prompts.jsonl and held.jsonl."""
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"question": "1+1?"}\n' * 3)
    (tmp_path / "held.jsonl").write_text('{"question": "2+2?", "answer": "4"}\n')
    return tmp_path


def settings_of(world: Path, **sections: dict[str, Any]) -> LearnerSettings:
    values: dict[str, dict[str, Any]] = {
        "model": {"path": str(world / "model")},
        "data": {"path": str(world / "prompts.jsonl")},
        "evaluation": {"benchmarks": [f"held={world / 'held.jsonl'}"], "every_rounds": 1},
    }
    for section, changes in sections.items():
        values[section] = values.get(section, {}) | changes
    return LearnerSettings.model_validate(values)


def test_sound_input_passes_and_says_what_was_seen(world: Path) -> None:
    found = {check.setting: check.run() for check in input_checks(settings_of(world))}
    assert list(found) == ["model.path", "data.path", "evaluation.benchmarks"]
    assert all(one.complete for one in found.values())
    assert "the first 3 rows" in found["data.path"].detail


def test_an_evaluator_needs_no_prompts(world: Path) -> None:
    (world / "prompts.jsonl").unlink()
    check_inputs(settings_of(world), leader="evaluator")
    with pytest.raises(SeptError, match=r"prompts\.jsonl does not exist"):
        check_inputs(settings_of(world))


@pytest.mark.parametrize(
    ("sections", "found"),
    [
        ({"model": {"path": ""}}, "no model is named"),
        ({"model": {"path": "./none"}}, "neither a folder nor a Hugging Face id"),
        ({"model": {"path": "a/" * 3000}}, "neither a folder nor a Hugging Face id"),
        ({"model": {"path": "a\0"}}, "neither a folder nor a Hugging Face id"),
        ({"data": {"path": "a/" * 3000}}, "cannot be read"),
        ({"data": {"path": "a\0.jsonl"}}, "cannot be read"),
        ({"data": {"path": "~nobody-of-this-name/a.jsonl"}}, "cannot be read"),
        ({"data": {"path": ""}}, "no prompts are named"),
        ({"data": {"path": "none/*.jsonl"}}, "no file matches"),
        ({"data": {"chat_template": "none.jinja"}}, "cannot be read as a file"),
        ({"data": {"chat_template": "{% if %}"}}, "no Jinja template"),
        ({"data": {"chat_template": "{{ messages[7].content }}"}}, "does not render"),
        ({"data": {"chat_template": "{{ 'always this' }}"}}, "leaves the user's question out"),
        ({"evaluation": {"benchmarks": ["nope"]}}, "benchmark nope is not known"),
        ({"evaluation": {"benchmarks": ["a=none.jsonl"]}}, "does not exist"),
        ({"evaluation": {"benchmarks": []}}, "names none"),
        ({"training": {"algorithm": "grpo"}}, "needs reference answers, and none of the 3 prompts"),
    ],
)
def test_each_setting_that_names_nothing_usable_is_refused(
    world: Path, sections: dict[str, dict[str, Any]], found: str
) -> None:
    with pytest.raises(SeptError, match=found) as caught:
        check_inputs(settings_of(world, **sections))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("prompts.jsonl", '{"question": "a"}\n{"question', "line 2 is not JSON"),
        ("prompts.jsonl", '{"text": "a"}\n', "line 1 has no column that holds a question"),
        ("prompts.jsonl", "", "no rows"),
        ("held.jsonl", '{"question": "a"}\n', "none of the 1 problems"),
        ("model/tokenizer.json", "{", "is no tokenizer"),
        ("model/model.safetensors", "{", "cannot be read"),
        ("model/config.json", "[]", "holds a list"),
        ("model/generation_config.json", "{", "is not JSON"),
        ("model/chat_template.jinja", "{{ nothing.content }}", r"template default of .*chat_template\.jinja"),
    ],
)
def test_each_file_that_is_broken_is_named(world: Path, name: str, content: str, found: str) -> None:
    (world / name).write_text(content)
    with pytest.raises(SeptError, match=found) as caught:
        check_inputs(settings_of(world))
    assert caught.value.hint


def test_a_template_is_tried_on_every_sequence_of_roles(world: Path) -> None:
    rows = [{"question": "a"}, {"prompt": [{"role": "system", "content": "b"}, {"role": "user", "content": "c"}]}]
    (world / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}"
    )
    with pytest.raises(SeptError, match="roles system, user: no system"):
        check_inputs(settings_of(world, data={"chat_template": template}))


def on_the_hub(world: Path) -> LearnerSettings:
    return settings_of(
        world, model={"path": "org/model"}, data={"path": "org/data:main"}, evaluation={"benchmarks": ["gsm8k"]}
    )


def test_what_the_hub_has_is_left_to_the_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_with("models/org/model", "datasets/org/data", "datasets/openai/gsm8k") as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        assert [check.run().complete for check in input_checks(on_the_hub(world))] == [False, False, False]


def test_what_the_hub_does_not_have_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_with() as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        for check, kind in zip(input_checks(on_the_hub(world)), ("a model", "a data set", "a data set"), strict=True):
            with pytest.raises(SeptError, match=f"nor {kind} on the Hugging Face hub"):
                check.run()


def test_without_the_hub_only_a_data_set_may_still_be_in_a_cache(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub_away())
    model, prompts, benchmarks = input_checks(on_the_hub(world))
    with pytest.raises(UnavailableError, match="the Hugging Face hub does not answer"):
        model.run()
    assert not (prompts.run().complete or benchmarks.run().complete)


def test_a_large_data_set_is_read_for_a_moment_only(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_checks_module, "CHECKED_FOR_S", 0.0)
    (world / "prompts.jsonl").write_text('{"question": "how much is one and one?", "answer": "2"}\n' * 9 + "{broken")
    check_inputs(settings_of(world))  # the broken line lies behind what the moment allows
    monkeypatch.setattr(input_checks_module, "CHECKED_FOR_S", 60.0)
    with pytest.raises(SeptError, match=r"prompts\.jsonl"):
        check_inputs(settings_of(world))


def test_neither_torch_nor_transformers_is_imported(world: Path) -> None:
    code = (
        "import sys; from learner.config import LearnerSettings; from learner.input_checks import check_inputs\n"
        f"check_inputs(LearnerSettings.model_validate({settings_of(world).model_dump()!r}))\n"
        "assert not {'torch', 'transformers', 'datasets', 'vllm'} & {*sys.modules}"
    ).replace(repr(settings_of(world).run.dir), repr(str(settings_of(world).run.dir)))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
