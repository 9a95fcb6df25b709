"""Turns questions into prompts of token ids, as the settings in [data] say.

1. The messages: one user message, or verl's conversation as it stands. A non-empty `data.system_prompt` replaces the
   conversation's system message or is put first; `data.question_suffix` is appended to the last user message.
2. `data.chat_template`: the tokenizer's own ("auto", where it has one), or a Jinja template (its name, text or path),
   with the generation prompt added. Otherwise ("none") the contents of the messages joined by a blank line: one
   question without a system prompt is exactly itself.
3. Token ids: a template writes its own special tokens; to plain text the tokenizer adds those that begin a text. What
   the data has is never read as special tokens (`learner.data.control_tokens`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from learner.config import DataConfig
from learner.data.chat_template import ChatTemplate, choose_template
from learner.data.control_tokens import PromptTokenizer
from learner.data.conversations import Message
from learner.data.dataset import Question, read_questions
from learner.data.readers.source import parse_source, split_sources
from learner.model_folder.tokenizer import CONFIG_FILE, named_templates
from services.contracts import TOKEN_DTYPE
from services.errors import DataError

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
    where: str = ""
    """Its row for error messages."""
    weight: float = 1.0
    """How often it comes, compared with prompts of weight 1."""


def load_prompts(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts of [data], in the order of the data set.

    Those longer than `max_prompt_tokens` are left out and counted in the log. DataError when none is left, or when
    the data cannot be read; ConfigError for a chat template that does not work.
    """
    prompts = tokenize(read_questions(config.path, split=config.split, limit=config.limit), config, tokenizer)
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


def tokenize(
    questions: Sequence[Question], config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, path: str = ""
) -> list[Prompt]:
    """The prompts of the questions, however long; `path`: the data set, where it is not that of the settings.

    DataError names the row that has no tokens, or text that can only be a control token.
    """
    prompt_tokenizer = PromptTokenizer(tokenizer)
    conversations = [conversation_of(question, config, prompt_tokenizer) for question in questions]
    template = template_of(config, tokenizer)
    if template is not None:
        template.check(conversations[0])
    texts = [_text_of(conversation, template) for conversation in conversations]
    wheres = [question.where or f"row {question.row}" for question in questions]
    encoded = prompt_tokenizer.encode(texts, wheres, add_special_tokens=template is None)
    bad = [ids for ids in encoded if isinstance(ids, DataError)]
    rules = {parse_source(named).bad_rows for named in split_sources(path or config.path)}
    if bad and ("refuse" in rules or len(bad) == len(encoded)):
        raise bad[0]
    if bad:
        log.warning("bad_rows_left_out", path=path or config.path, rows=len(bad), reason=bad[0].message)
    # Some tokenizers end every text with the end-of-text token, after which there is nothing to continue.
    end = tokenizer.eos_token_id if template is None else None
    return [
        Prompt(question.row, question.text, question.answer, _as_array(ids, end), where, question.weight)
        for question, ids, where in zip(questions, encoded, wheres, strict=True)
        if not isinstance(ids, DataError)
    ]


def conversation_of(question: Question, config: DataConfig, tokenizer: PromptTokenizer | None = None) -> list[Message]:
    """The question's messages as the settings complete them; a tokenizer hides the special tokens in them."""
    hide = tokenizer.hide if tokenizer is not None else str
    messages = [message | {"content": hide(message["content"])} for message in question.messages]
    *before, last = messages
    if config.system_prompt:
        before = [message for message in before if message["role"] != "system"]
        before.insert(0, {"role": "system", "content": config.system_prompt})
    return [*before, {"role": last["role"], "content": last["content"] + config.question_suffix}]


def template_of(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """The template that the settings choose among the tokenizer's and others; None for plain text."""
    folder = Path(tokenizer.name_or_path or ".")
    own = named_templates(tokenizer.chat_template, folder / CONFIG_FILE)
    return choose_template(config.chat_template, own, folder, tokenizer.special_tokens_map)


def _text_of(conversation: list[Message], template: ChatTemplate | None) -> str:
    if template is not None:
        return template.render(conversation)
    return "\n\n".join(message["content"] for message in conversation)


def _as_array(ids: list[int], end: int | None) -> NDArray[np.int32]:
    return np.array(ids[:-1] if len(ids) > 1 and ids[-1] == end else ids, dtype=TOKEN_DTYPE)
