"""Renders conversations with a chat template, as transformers does, with the date pinned.

A template that writes the date would give one run other prompts after midnight. It always sees PINNED_DATE, the date
that Llama's templates fall back to.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from learner.data.conversations import Message
from learner.model_folder import tokenizer as tokenizer_files
from services.errors import ConfigError, ModelError, SeptError

PINNED_DATE = datetime(2024, 7, 26)
RENDERED_WITHIN_S = 3.0
"""A template that takes longer for one conversation will not end."""
MOST_REPETITIONS = 1_000_000
"""Characters or elements that one multiplication in a template may make."""


class ChatTemplate:
    """One template, compiled.

    ChatTemplate(text, "data.chat_template", {"bos_token": "<s>"}).render([{"role": "user", "content": "1+1?"}])
    """

    def __init__(self, text: str, name: str, special_tokens: Mapping[str, str], error: type[SeptError]) -> None:
        """`name`: where it stands, for errors, which are of class `error`."""
        self.name = name
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(text.removeprefix("\ufeff"))
        except TemplateSyntaxError as cause:
            raise error(
                f"{name} is no Jinja template: line {cause.lineno}: {cause.message}",
                hint="correct it, or name another in data.chat_template",
            ) from cause
        except Exception as cause:  # deep nesting, huge constants: Jinja compiles them as Python
            raise error(
                f"{name} is no Jinja template: {type(cause).__name__}: {cause!s:.200}",
                hint="correct it, or name another in data.chat_template",
            ) from cause

    def render(self, conversation: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of the conversation; ConfigError when the template cannot render it."""
        variables = self._special_tokens | {
            "messages": list(conversation),
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return str(self._template.render(variables))
        except Exception as cause:  # a template is a program: it fails with everything that Python has
            roles = ", ".join(message["role"] for message in conversation)
            reason = str(cause) if isinstance(cause, TemplateError) else f"{type(cause).__name__}: {cause}"
            raise ConfigError(
                f"{self.name} does not render messages of roles {roles}: {reason:.300}",
                hint="a template without a system role wants data.system_prompt empty; data.question_suffix can hold "
                "the instruction; data.chat_template names another template",
            ) from cause

    def check(self, conversation: Sequence[Message]) -> None:
        """ConfigError unless it renders this conversation in time, and another question to another text."""
        *before, last = conversation
        other = [*before, last | {"content": last["content"] + " What else?"}]
        first, second = self._in_time(conversation), self._in_time(other)
        if not first.strip() or first == second:
            raise ConfigError(
                f"{self.name} leaves the user's question out of the prompt",
                hint="it should write message.content as text; data.chat_template names another template",
            )

    def _in_time(self, conversation: Sequence[Message]) -> str:
        texts: list[str] = []
        errors: list[ConfigError] = []

        def render() -> None:
            try:
                texts.append(self.render(conversation))
            except ConfigError as error:
                errors.append(error)

        # A thread, as nothing can end a loop in a template; it does not keep the process from its end.
        thread = threading.Thread(target=render, name="chat-template", daemon=True)
        thread.start()
        thread.join(RENDERED_WITHIN_S)
        if errors:
            raise errors[0]
        if not texts:
            raise ConfigError(
                f"{self.name} did not render one conversation within {RENDERED_WITHIN_S:g} s",
                hint="look for a loop in it, or name another template in data.chat_template",
            )
        return texts[0]


def choose_template(
    setting: str, own: Mapping[str, str], folder: Path, special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """The template that data.chat_template names, None for plain text; `own` are those of the model's folder."""
    if setting == "none" or (setting == "auto" and not own):
        return None
    place = tokenizer_files.template_place(folder)
    if setting == "auto" and "default" not in own:
        raise ModelError(
            f"the chat templates in {place} are {', '.join(sorted(own))}, and none is the default",
            hint="set data.chat_template to one of these names, to a template's path, or to none",
        )
    if setting == "auto" or setting in own:
        name = "default" if setting == "auto" else setting
        return ChatTemplate(own[name], f"the chat template {name} of {place}", special_tokens, ModelError)
    if "{" in setting:
        return ChatTemplate(setting, "data.chat_template", special_tokens, ConfigError)
    try:
        text = Path(setting).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"data.chat_template = {setting!r} cannot be read as a file: {error}",
            hint="accepted are auto, none, the name of one of the tokenizer's templates, the path of a Jinja template, "
            "or the template's text",
        ) from error
    return ChatTemplate(text, f"data.chat_template {setting}", special_tokens, ConfigError)


class _Environment(ImmutableSandboxedEnvironment):
    """transformers' environment; products are bounded, so that no template takes all memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(right, int | float) and abs(right) > 1000:
            raise SecurityError(f"the power {right} is too large")
        for one, other in ((left, right), (right, left)):
            if isinstance(one, int) and hasattr(other, "__len__") and one * len(other) > MOST_REPETITIONS:
                raise SecurityError(f"{one} repetitions are more than {MOST_REPETITIONS}")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """{% generation %} marks the assistant's words in templates for training; here it is only what stands in it."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Macro) -> str:
        return str(caller())


def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = PINNED_DATE.strftime
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
