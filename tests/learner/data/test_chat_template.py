"""Chat templates: rendered as transformers does, with the date pinned, and refused at once when they cannot work."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from learner.data.chat_template import ChatTemplate, choose_template
from services.errors import ConfigError, ModelError, SeptError
from tests.support.tokenizers import byte_tokenizer

USER = [{"role": "user", "content": " 1 < 2 & é? "}]
TALK = [{"role": "system", "content": "Be brief."}, *USER, {"role": "assistant", "content": "yes"}, *USER]
CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
TEMPLATES = [
    CHATML,
    "{{ bos_token }}{% for m in messages %}{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}",
    "{% for m in messages %}{{ m | tojson }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% if tools is not none or documents %}T{% endif %}{{ messages[-1].content }}{{ pad_token is defined }}",
    "  {% set ns = namespace(n=0) %}\n"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m.content }}{% endfor %}",
    "{% macro turn(m) %}[{{ m.role }}]{{ m.content }}{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


@pytest.mark.parametrize("text", TEMPLATES)
@pytest.mark.parametrize("conversation", [USER, TALK], ids=["one", "several"])
def test_a_conversation_is_rendered_as_transformers_does(
    tokenizer: PreTrainedTokenizerBase, text: str, conversation: list[dict[str, str]]
) -> None:
    template = ChatTemplate(text, "t", tokenizer.special_tokens_map, ConfigError)
    for prompting in (True, False):
        expected = tokenizer.apply_chat_template(
            conversation, chat_template=text, tokenize=False, add_generation_prompt=prompting
        )
        assert template.render(conversation, add_generation_prompt=prompting) == expected


def test_the_date_in_a_template_is_the_same_every_day() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}", "t", {}, ConfigError)
    assert template.render([{"role": "user", "content": "hi"}]) == "26 Jul 2024 hi"


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path: Path) -> None:
    (tmp_path / "a.jinja").write_text("\ufeff{{ messages[0].content }}\r\n{{ 1 }}", newline="")
    template = choose_template(str(tmp_path / "a.jinja"), {}, tmp_path, {})
    assert template is not None
    assert template.render([{"role": "user", "content": "hi"}]) == "hi\n1"
    assert ChatTemplate("\ufeffx", "t", {}, ConfigError).render(USER) == "x"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{% for m in messages %}", "no Jinja template: line 1"),
        ("{{ messages | nope }}", "nope"),
        ("{{ raise_exception('only pairs') }}", "roles user: only pairs"),
        ("{{ messages[5].content }}", "has no element 5"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ messages[0].content.foo() }}", "has no attribute 'foo'"),
        ("{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1] }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% include 'other' %}", "no loader"),
        ("{{ 'a' * 10**12 }}", "repetitions|too large"),
        ("{{ 9 ** 999999999 }}", "too large|no Jinja template"),
        ("{% for i in range(999999999) %}{% endfor %}", "OverflowError|range"),
    ],
)
def test_a_template_that_fails_is_refused_with_its_cause(text: str, found: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=found) as caught:
        ChatTemplate(text, "mine.jinja", {}, ConfigError).check(USER)
    assert "mine.jinja" in caught.value.message
    assert caught.value.hint
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("text", ["Hello", "", "{{ messages[0].role }}", "{% if messages[0].parts %}x{% endif %}"])
def test_a_template_that_leaves_out_the_question_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="leaves the user's question out"):
        ChatTemplate(text, "t", {}, ConfigError).check(USER)


def test_a_template_that_does_not_end_is_refused() -> None:
    loop = "{% for a in range(60000) %}{% for b in range(60000) %}{% endfor %}{% endfor %}"
    with pytest.raises(ConfigError, match="did not render one conversation within"):
        ChatTemplate(loop, "t", {}, ConfigError).check(USER)


def test_one_of_several_named_templates_is_chosen(tmp_path: Path) -> None:
    own = {"rag": "RAG {{ messages[0].content }}", "default": "D {{ messages[0].content }}"}
    for setting, expected in (("auto", "D 1"), ("rag", "RAG 1"), ("{{ messages[0].content }}!", "1!")):
        template = choose_template(setting, own, tmp_path, {})
        assert template is not None
        assert template.render([{"role": "user", "content": "1"}]) == expected
    assert choose_template("none", own, tmp_path, {}) is None
    assert choose_template("auto", {}, tmp_path, {}) is None


def test_named_templates_without_a_default_are_refused_with_their_names(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    with pytest.raises(ModelError, match=r"_config\.json are rag, tool_use, and none is the default") as caught:
        choose_template("auto", {"tool_use": "", "rag": ""}, tmp_path, {})
    assert "data.chat_template" in caught.value.hint


@pytest.mark.parametrize("setting", ["nowhere.jinja", "a\0b", "x" * 5000, "/"])
def test_a_setting_that_is_no_template_is_refused(setting: str, tmp_path: Path) -> None:
    with pytest.raises(SeptError, match=r"data\.chat_template"):
        choose_template(setting, {}, tmp_path, {})
