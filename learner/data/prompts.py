"""Turns questions into prompts of token ids, as the settings in [data] say.

1. The messages: one user message, or verl's conversation as it stands. A non-empty `data.system_prompt` replaces the
   conversation's system message or is put first; `data.question_suffix` is appended to the last user message.
2. `data.chat_template`: the tokenizer's own ("auto", where it has one), or a Jinja template (its text or path), with
   the generation prompt added. Otherwise ("none") the contents of the messages joined by a blank line: one question
   without a system prompt is exactly itself.
3. Token ids: a template writes its own special tokens; to plain text the tokenizer adds those that begin a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
from jinja2 import TemplateError
from numpy.typing import NDArray

from learner.config import DataConfig
from learner.data.dataset import Message, Question, read_questions
from services.contracts import TOKEN_DTYPE
from services.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One prompt as a model gets it."""

    row: int
    """Number of its row in the data set, from 0; rows that were left out leave gaps."""
    question: str
    """The user's question as in the data set, for people to read."""
    answer: str | None
    """The reference answer, where the data has one."""
    tokens: NDArray[np.int32]
    """[P] token ids that the model continues."""


def load_prompts(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts of [data], in the order of the data set.

    Those longer than `max_prompt_tokens` are left out and counted in the log. DataError when none is left, or when
    the data cannot be read; ConfigError for a chat template that does not work.
    """
    questions = read_questions(config.path, split=config.split, limit=config.limit)
    prompts = tokenize(questions, config, tokenizer)
    kept = [prompt for prompt in prompts if prompt.tokens.size <= config.max_prompt_tokens]
    if not kept:
        shortest = min(prompt.tokens.size for prompt in prompts)
        raise DataError(
            f"all {len(prompts)} prompts of {config.path} are longer than data.max_prompt_tokens = "
            f"{config.max_prompt_tokens}; the shortest has {shortest} tokens",
            hint="raise data.max_prompt_tokens",
        )
    log.info(
        "prompts_loaded",
        path=config.path,
        prompts=len(kept),
        left_out_too_long=len(prompts) - len(kept),
        with_answer=sum(prompt.answer is not None for prompt in kept),
        longest_tokens=max(prompt.tokens.size for prompt in kept),
    )
    return kept


def tokenize(questions: Sequence[Question], config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts of the questions, however long."""
    conversations = [_conversation(question, config) for question in questions]
    template = _template(config.chat_template, tokenizer)
    if template is None:
        token_ids = _plain_tokens(conversations, tokenizer)
    else:
        texts = [_rendered(conversation, template, tokenizer) for conversation in conversations]
        token_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [
        Prompt(question.row, question.text, question.answer, np.array(ids, dtype=TOKEN_DTYPE))
        for question, ids in zip(questions, token_ids, strict=True)
    ]


def _conversation(question: Question, config: DataConfig) -> list[Message]:
    *before, last = question.messages
    if config.system_prompt:
        before = [message for message in before if message["role"] != "system"]
        before.insert(0, {"role": "system", "content": config.system_prompt})
    return [*before, {"role": last["role"], "content": last["content"] + config.question_suffix}]


def _template(setting: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The Jinja text to render with, or None for plain text."""
    if setting == "none" or (setting == "auto" and tokenizer.chat_template is None):
        return None
    if setting == "auto":
        return tokenizer.get_chat_template()
    if "{" in setting:
        return setting
    try:
        return Path(setting).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.chat_template = {setting!r} cannot be read as a file: {error}",
            hint="accepted are auto, none, the path of a Jinja template, or the template's text",
        ) from error


def _rendered(conversation: list[Message], template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        text = tokenizer.apply_chat_template(
            conversation, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in conversation)
        raise ConfigError(
            f"the chat template does not render messages of roles {roles}: {error}",
            hint="a template without a system role wants data.system_prompt empty; data.question_suffix can hold the "
            "instruction; data.chat_template names another template",
        ) from error
    return str(text)


def _plain_tokens(conversations: list[list[Message]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    texts = ["\n\n".join(message["content"] for message in conversation) for conversation in conversations]
    token_ids: list[list[int]] = tokenizer(texts)["input_ids"]
    # Some tokenizers end every text with the end-of-text token, after which there is nothing to continue.
    end = tokenizer.eos_token_id
    return [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in token_ids]
