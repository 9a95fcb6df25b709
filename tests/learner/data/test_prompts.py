from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from learner.config import DataConfig
from learner.data.prompts import Prompt, load_prompts
from services.errors import ConfigError, DataError

CHAT = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT


def character_tokenizer(chat_template: str | None = None, *, ends_text: bool = False) -> PreTrainedTokenizerFast:
    """One token per character; <s> before every text, and </s> after it if configured."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    single = "<s> $A </s>" if ends_text else "<s> $A"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=chat_template
    )


def config(folder: Path, *rows: dict[str, Any], **settings: Any) -> DataConfig:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return DataConfig(path=str(file), **settings)


def text(prompt: Prompt, tokenizer: PreTrainedTokenizerFast) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(prompt.tokens.tolist()))


def rendered(folder: Path, tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], **settings: Any) -> str:
    (prompt,) = load_prompts(config(folder, row, **settings), tokenizer)
    return text(prompt, tokenizer)


ADDITION = {"prompt": "47+85=", "completion": "231"}
VERL = {"prompt": [{"role": "system", "content": "Old."}, {"role": "user", "content": "1+1?"}]}


def test_plain_text_is_the_question_itself_after_the_tokenizers_start(tmp_path: Path) -> None:
    assert rendered(tmp_path, character_tokenizer(), ADDITION) == "<s>47+85="


def test_plain_text_never_ends_in_the_end_of_text(tmp_path: Path) -> None:
    assert rendered(tmp_path, character_tokenizer(ends_text=True), ADDITION) == "<s>47+85="


def test_plain_text_joins_system_prompt_and_question_by_a_blank_line(tmp_path: Path) -> None:
    got = rendered(tmp_path, character_tokenizer(CHAT), ADDITION, chat_template="none", system_prompt="Add.")
    assert got == "<s>Add.\n\n47+85="


def test_auto_uses_the_tokenizers_template_if_it_has_one(tmp_path: Path) -> None:
    got = rendered(tmp_path, character_tokenizer(CHAT), ADDITION, system_prompt="Add.", question_suffix=" Box it.")
    assert got == "[system] Add.\n[user] 47+85= Box it.\n[assistant] "


def test_a_template_may_be_given_as_text_or_path(tmp_path: Path) -> None:
    template = "User: {{ messages[-1].content }} Assistant:"
    (tmp_path / "user.jinja").write_text(template)
    for setting in (template, str(tmp_path / "user.jinja")):
        got = rendered(tmp_path, character_tokenizer(CHAT), ADDITION, chat_template=setting)
        assert got == "User: 47+85= Assistant:"


def test_a_conversation_keeps_its_system_message_unless_the_setting_replaces_it(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(CHAT)
    assert rendered(tmp_path, tokenizer, VERL) == "[system] Old.\n[user] 1+1?\n[assistant] "
    assert rendered(tmp_path, tokenizer, VERL, system_prompt="New.") == "[system] New.\n[user] 1+1?\n[assistant] "


def test_question_and_answer_stay_as_in_the_data(tmp_path: Path) -> None:
    (prompt,) = load_prompts(config(tmp_path, ADDITION, question_suffix=" Box it."), character_tokenizer())
    assert (prompt.row, prompt.question, prompt.answer) == (0, "47+85=", "231")


def test_longer_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"question": "a"}, {"question": "a" * 50}, {"question": "b"}]
    with structlog.testing.capture_logs() as logs:
        prompts = load_prompts(config(tmp_path, *rows, max_prompt_tokens=10), character_tokenizer())
    assert [prompt.row for prompt in prompts] == [0, 2]
    assert [(entry["prompts"], entry["left_out_too_long"]) for entry in logs] == [(2, 1)]


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    rows = [{"question": letter} for letter in "abc"]
    prompts = load_prompts(config(tmp_path, *rows, limit=2), character_tokenizer())
    assert [prompt.question for prompt in prompts] == ["a", "b"]


def test_no_prompt_within_the_limit_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="max_prompt_tokens = 3; the shortest has 7"):
        load_prompts(config(tmp_path, ADDITION, max_prompt_tokens=3), character_tokenizer())


def test_a_template_without_system_role_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no system role") as caught:
        rendered(tmp_path, character_tokenizer(NO_SYSTEM), ADDITION, system_prompt="Add.")
    assert "question_suffix" in caught.value.hint


def test_a_template_that_is_neither_text_nor_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.jinja"):
        rendered(tmp_path, character_tokenizer(), ADDITION, chat_template="nowhere.jinja")
