"""Finds the tokens that end a response, everywhere a model states them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner.data.chat_template import ChatTemplate
from learner.model_folder.files import read_json
from services.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = "sept-answer"


def stop_token_ids(
    folder: Path, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None, more: Iterable[str] = ()
) -> tuple[int, ...]:
    """Token ids, ascending: those of generation_config.json and config.json, the tokenizer's, the template's, and
    `more`: texts of one token each, or ids. ConfigError for what is neither.

    Each place may lack some: Qwen2.5-Math's generation settings name <|endoftext|>, its template ends turns with
    <|im_end|>, and a model that is not stopped there invents the next turn.
    """
    found = {*_stated(folder / "generation_config.json"), *_stated(folder / "config.json")}
    if tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    if template is not None:
        found |= {*_ends_of_turn(tokenizer, template)}
    return tuple(sorted(found | {_named(tokenizer, text) for text in more}))


def _named(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The one token that a setting names by its text or its id."""
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[text]] if text in vocabulary else tokenizer.encode(text, add_special_tokens=False)
    if len(ids) == 1:
        return int(ids[0])
    if text.isascii() and text.isdecimal() and int(text) < len(tokenizer):
        return int(text)
    raise ConfigError(
        f"sampling.stop_tokens has {text!r:.80}, which is {len(ids)} tokens of the model's tokenizer",
        hint=f"name texts of one token each, or ids below {len(tokenizer)}",
    )


def _stated(path: Path) -> Iterator[int]:
    """The `eos_token_id` of the file and of the text model in it."""
    settings = read_json(path)
    text = settings.get("text_config")
    for one in (settings, text if isinstance(text, dict) else {}):
        value: Any = one.get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if token is not None and (isinstance(token, bool) or not isinstance(token, int)):
                raise ModelError(
                    f"eos_token_id = {value!r:.80} in {path} is neither a token id nor a list of them",
                    hint="correct the file, or copy the model again",
                )
            if token is not None and token >= 0:  # some write -1 for none
                yield token


def _ends_of_turn(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> Iterator[int]:
    """The special token that the template writes right after an assistant's answer, if it is one token."""
    turns = [{"role": "user", "content": "sept-question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = template.render(turns, add_generation_prompt=False)
    except ConfigError:  # a template for one question only has no turns
        return
    _, _, rest = text.rpartition(_ANSWER)
    rest = rest.lstrip()
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ending = max((content for content in special if content and rest.startswith(content)), key=len, default=None)
    if ending is not None and _ANSWER in text:
        yield special[ending]
