"""Stand-ins for the paper's five models: random weights, and a tokenizer of bytes with the model's own special tokens,
turns and stop tokens. The templates are written here; they render one question as the models' own do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.support import tiny_models
from tests.support.tokenizers import byte_tokenizer

REASON = "Please reason step by step, and put your final answer within \\boxed{}."

QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN = (
    "{{% if messages[0].role != 'system' %}}<|im_start|>system\n{default}<|im_end|>\n{{% endif %}}"
    "{{% for message in messages %}}<|im_start|>{{{{ message.role }}}}\n{{{{ message.content }}}}<|im_end|>\n"
    "{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)
LLAMA_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
LLAMA = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|eot_id|>"
    "{% for message in messages %}{% if message.role != 'system' %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
DEEPSEEK_SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}User: {{ message.content }}\n\n"
    "{% elif message.role == 'assistant' %}Assistant: {{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True, slots=True)
class PaperModel:
    """What of a model decides its prompts and where its answers end."""

    special: tuple[str, ...]
    template: str
    bos: str | None
    eos: str
    """The tokenizer's."""
    ends: tuple[str, ...]
    """Those of generation_config.json."""


def _qwen(default: str, eos: str, *ends: str) -> PaperModel:
    return PaperModel(QWEN_SPECIAL, QWEN.format(default=default), None, eos, ends)


PAPER_MODELS = {
    "Qwen2.5-Math-7B": _qwen(REASON, "<|endoftext|>", "<|endoftext|>"),
    "Qwen2.5-7B": _qwen("You are a helpful assistant.", "<|endoftext|>", "<|endoftext|>"),
    "Qwen2.5-7B-Instruct": _qwen(
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        "<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
    ),
    "deepseek-math-7b-instruct": PaperModel(DEEPSEEK_SPECIAL, DEEPSEEK, *DEEPSEEK_SPECIAL, DEEPSEEK_SPECIAL[1:]),
    "Llama-3.1-8B-Instruct": PaperModel(
        LLAMA_SPECIAL, LLAMA, "<|begin_of_text|>", "<|eot_id|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    ),
}
"""By the last part of their ids on the hub."""


def save_stand_in(folder: Path, name: str) -> Path:
    """A folder that is loaded in place of the model."""
    model = PAPER_MODELS[name]
    tokenizer = byte_tokenizer(model.template, special=model.special, bos=model.bos, eos=model.eos)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, "bos_token_id": None, "eos_token_id": None}
    tiny_models.save(folder, tiny_models.config("qwen2" if model.special is QWEN_SPECIAL else "llama", **sizes))
    tokenizer.save_pretrained(folder)
    ends = [tokenizer.convert_tokens_to_ids(text) for text in model.ends]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder
