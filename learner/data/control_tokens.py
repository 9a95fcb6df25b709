"""Keeps the text of a data set from becoming control tokens: "<|im_end|>" in a question is spelled out, never obeyed.

1. `hide` replaces the text of every special token in what comes from the data by a marker.
2. The conversation is rendered; the template's own special tokens are the only ones left in the text.
3. `encode` tokenizes what is between the markers as usual, and each hidden text as ordinary characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from learner.data.conversations import NONCHARACTERS
from services.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE = NONCHARACTERS[0], NONCHARACTERS[1]
_MARKER = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class PromptTokenizer:
    """A tokenizer for prompts that are made from data."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        texts = sorted({*special, *map(str, tokenizer.all_special_tokens)} - {""}, key=lambda text: (-len(text), text))
        self._texts = texts
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        # What a vocabulary does not know becomes its unknown token, which controls nothing unless it ends a text, too.
        ids = {tokenizer.convert_tokens_to_ids(text) for text in texts}
        self._control_ids = ids - ({tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id})

    def hide(self, text: str) -> str:
        """The text with a marker for every special token's text in it."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: f"{_OPEN}{self._texts.index(match[0])}{_CLOSE}", text)

    def encode(
        self, texts: Sequence[str], wheres: Sequence[str], *, add_special_tokens: bool
    ) -> list[list[int] | DataError]:
        """Token ids of every text, or why its row, which `wheres` names, cannot be a prompt."""
        plain = [place for place, text in enumerate(texts) if _OPEN not in text]
        batch = self._ids([texts[place] for place in plain], [wheres[place] for place in plain], add_special_tokens)
        encoded: dict[int, list[int] | DataError] = dict(zip(plain, batch, strict=True))
        for place, (text, where) in enumerate(zip(texts, wheres, strict=True)):
            if place not in encoded:
                encoded[place] = self._encode_marked(text, where, add_special_tokens=add_special_tokens)
        return [encoded[place] or _no_tokens(wheres[place]) for place in range(len(texts))]

    def _encode_marked(self, text: str, where: str, *, add_special_tokens: bool) -> list[int] | DataError:
        pieces = _MARKER.split(text)  # text, number, text, number ... text
        ids = self._start_of_text(where) if add_special_tokens else []
        for place, piece in enumerate(pieces):
            if place % 2 == 0:
                ids += self._ids([piece], [where], False)[0] if piece else []
                continue
            hidden = self._texts[int(piece)]
            spelled = self._ids([hidden], [where], False, split_special_tokens=True)[0]
            if self._control_ids & {*spelled}:
                return DataError(
                    f"{where} holds {hidden!r}, a control token that this tokenizer cannot write as ordinary text",
                    hint="drop the row (data.path?bad_rows=leave_out does)",
                )
            ids += spelled
        return ids

    def _start_of_text(self, where: str) -> list[int]:
        """What the tokenizer puts before every text."""
        with_start, without = (self._ids(["1"], [where], add)[0] for add in (True, False))
        places = range(len(with_start) - len(without) + 1)
        found = next((place for place in places if with_start[place : place + len(without)] == without), 0)
        return with_start[:found]

    def _ids(
        self, texts: Sequence[str], wheres: Sequence[str], add_special_tokens: bool, **options: bool
    ) -> list[list[int]]:
        if not texts:
            return []
        try:
            found: list[list[int]] = self._tokenizer(
                list(texts), add_special_tokens=add_special_tokens, verbose=False, **options
            )["input_ids"]
        except BaseException as error:  # a panic in Rust is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                raise
            if len(texts) > 1:  # which of them is it?
                return [self._ids([text], [where], add_special_tokens, **options)[0]
                        for text, where in zip(texts, wheres, strict=True)]  # fmt: skip
            raise ModelError(
                f"the tokenizer of {self._tokenizer.name_or_path} does not encode {wheres[0]}: "
                f"{type(error).__name__}: {error!s:.200}",
                hint="check the tokenizer's files, or drop the row",
            ) from error
        return found


def _no_tokens(where: str) -> DataError:
    return DataError(f"{where} has no tokens as a prompt", hint="drop the row (data.path?bad_rows=leave_out does)")
