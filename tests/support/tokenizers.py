"""A stand-in for a model's tokenizer: one token per byte, and the special tokens of a chat model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
"""Ids 0 to 3; the second one ends a text."""
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(
    chat_template: Any = None, *, special: Sequence[str] = SPECIAL, bos: str | None = "<s>", eos: str = "</s>"
) -> PreTrainedTokenizerBase:
    """Byte-level BPE without merges, as Qwen's is with them; the special tokens have the first ids."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *letters, "<think>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens(["<think>"])
    fast: Any = PreTrainedTokenizerFast  # untyped in transformers
    made: PreTrainedTokenizerBase = fast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, chat_template=chat_template
    )
    return made


def save_byte_tokenizer(folder: Path, chat_template: Any = CHATML) -> Path:
    """The stand-in's files, in a folder that may hold a model."""
    byte_tokenizer(chat_template).save_pretrained(folder)
    return folder
