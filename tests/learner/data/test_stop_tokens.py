"""Where a model states the tokens that end a response."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from learner.config import DataConfig
from learner.data.prompts import template_of
from learner.data.stop_tokens import stop_token_ids
from services.errors import ConfigError, ModelError
from tests.support.tokenizers import CHATML, byte_tokenizer


def found(
    folder: Path, *, generation: Any = None, config: Any = None, template: str | None = None, setting: str = "auto"
) -> tuple[int, ...]:
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    tokenizer = byte_tokenizer(template)
    return stop_token_ids(folder, tokenizer, template_of(DataConfig(chat_template=setting), tokenizer))


def test_every_place_counts(tmp_path: Path) -> None:
    """The tokenizer's </s> is 1, the template ends turns with <|im_end|>, which is 3."""
    assert found(tmp_path, generation={"eos_token_id": [9, 7]}, config={"eos_token_id": 8}) == (1, 7, 8, 9)
    assert found(tmp_path, template=CHATML) == (1, 3, 7, 8, 9)
    assert found(tmp_path, template=CHATML, setting="none") == (1, 7, 8, 9)


def test_the_text_model_of_a_larger_one_states_its_own(tmp_path: Path) -> None:
    assert found(tmp_path, config={"text_config": {"eos_token_id": [5, 6]}}) == (1, 5, 6)


@pytest.mark.parametrize("value", [None, [], -1, [-1]])
def test_none_is_stated_in_several_ways(tmp_path: Path, value: Any) -> None:
    assert found(tmp_path, generation={"eos_token_id": value}) == (1,)


@pytest.mark.parametrize("value", ["</s>", 1.5, True, {"id": 1}, [["1"]]])
def test_what_is_no_token_id_is_refused_by_its_file(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ModelError, match=r"eos_token_id = .* in .*generation_config\.json"):
        found(tmp_path, generation={"eos_token_id": value})


@pytest.mark.parametrize(
    ("template", "stops"),
    [
        ("{% for m in messages %}{{ m.content }}</s>{% endfor %}", (1,)),
        ("{% for m in messages %}{{ m.content }}\n<|im_end|>\n{% endfor %}", (1, 3)),
        ("{% for m in messages %}{{ m.content }} END {% endfor %}", (1,)),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", (1,)),
        ("{{ messages[0].content }}", (1,)),
        ("{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}{{ messages[0].content }}", (1,)),
    ],
)
def test_only_a_special_token_right_after_the_answer_ends_a_turn(
    tmp_path: Path, template: str, stops: tuple[int, ...]
) -> None:
    assert found(tmp_path, template=template) == stops


def test_a_setting_names_more_by_text_or_id(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    newline = tokenizer.encode("\n", add_special_tokens=False)[0]
    assert stop_token_ids(tmp_path, tokenizer, None, ["<|im_end|>", "\n", "200"]) == tuple(sorted((1, 3, newline, 200)))


@pytest.mark.parametrize("text", ["</answer>", "", "100000", "-1"])
def test_what_is_no_single_token_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.stop_tokens has") as caught:
        stop_token_ids(tmp_path, byte_tokenizer(), None, [text])
    assert "ids below" in str(caught.value.hint)
