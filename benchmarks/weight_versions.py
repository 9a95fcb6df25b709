"""Real successive versions of a model, from a short fp32-master AdamW training.

Plain next-token loss in tiny batches: what matters here is how AdamW moves bf16 weights at a given learning rate, not
what the model learns. Version 0 is the model as it was, version n the weights after n updates. With adapters these are
the merged weights, and the adapters themselves next to them.

Legend of shapes: B texts, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from learner.config import LoraConfig
from learner.model.lora import adapters_of, add_adapters, base_name, is_adapter, merge_adapter

WEIGHT_DECAY = 0.01
BATCH_TEXTS = 2
MAX_TOKENS = 192
IGNORED_LABEL = -100

SMALL_VOCABULARY = 256
SMALL_TRAINING_UPDATES = 60
SMALL_LEARNING_RATE = 1e-3

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
"""Endless ([B, T] tokens, [B, T] labels)."""


def version_path(folder: Path, version: int) -> Path:
    return folder / f"v{version:05d}.safetensors"


def adapters_path(folder: Path, version: int) -> Path:
    return folder / f"v{version:05d}.adapters.safetensors"


def train_versions(
    model: Path | None,
    texts: Path | None,
    folder: Path,
    *,
    learning_rate: float,
    keep: Collection[int],
    lora_rank: int = 0,
) -> None:
    """Trains up to the last version of `keep` and saves those, in bf16, into `folder`; whole sets are not redone.

    Args:
        model: Hugging Face folder; None for a small model trained on the spot in full precision.
        texts: JSON lines with `question` and `answer`; None for sums in words, made on the spot.
        keep: versions to save.
        lora_rank: of adapters on all linear layers but the head, which then are all that is trained; 0: no adapters.
    """
    if all(version_path(folder, version).exists() for version in keep):
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rows = _sums() if texts is None else [json.loads(line) for line in texts.read_bytes().splitlines()]
    plain = [f"{row['question']}\n{row['answer']}" for row in rows]
    network: Any
    if model is None:
        network = _small_model()
        batches = _batches([list(text.encode()) for text in plain])
        for _ in _train(network, batches, SMALL_LEARNING_RATE, range(SMALL_TRAINING_UPDATES)):
            pass
    else:
        tokenizer = AutoTokenizer.from_pretrained(model)
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        batches = _batches([tokenizer.encode(text) for text in plain[:4096]])
    _round_to_wire(network)
    if lora_rank:
        add_adapters(network, LoraConfig(rank=lora_rank))
    _save(network, folder, 0, keep)
    for version in _train(network, batches, learning_rate, range(1, max(keep) + 1)):
        _save(network, folder, version, keep)


def save_small_model(folder: Path) -> Path:
    """The Hugging Face folder of the small model, untrained: its config is what engines need."""
    torch.manual_seed(0)
    cast(Any, _small_model()).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _train(network: Any, batches: Batches, learning_rate: float, updates: range) -> Iterator[int]:
    """One optimizer step per number of `updates`, which is yielded after it."""
    network.train()
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    for update in updates:
        tokens, labels = next(batches)
        network(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield update


def _batches(encoded: list[list[int]]) -> Batches:
    """Padding carries no loss."""
    at = 0
    while True:
        chosen = [encoded[(at + offset) % len(encoded)][:MAX_TOKENS] for offset in range(BATCH_TEXTS)]
        at += BATCH_TEXTS
        width = max(len(tokens) for tokens in chosen)
        yield (
            torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in chosen]),
            torch.tensor([tokens + [IGNORED_LABEL] * (width - len(tokens)) for tokens in chosen]),
        )


def _small_model() -> LlamaForCausalLM:
    """About five million parameters over bytes."""
    config = LlamaConfig(
        vocab_size=SMALL_VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model_class: Any = LlamaForCausalLM  # transformers leaves its constructor unannotated
    return cast(LlamaForCausalLM, model_class(config))


def _sums() -> list[dict[str, str]]:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(10, 1000, (512, 2), generator=generator).tolist()
    return [{"question": f"How much is {a} and {b}?", "answer": f"{a} + {b} = {a + b}"} for a, b in pairs]


@torch.no_grad()
def _round_to_wire(network: torch.nn.Module) -> None:
    """Version 0 is a checkpoint in bf16, as a run starts from one."""
    for weight in network.parameters():
        weight.copy_(weight.to(torch.bfloat16))


def _save(network: Any, folder: Path, version: int, keep: Collection[int]) -> None:
    """Named parameters, so that a tied weight is saved once."""
    if version not in keep:
        return
    layers = adapters_of(network)
    weights, adapters = {}, {}
    for name, weight in network.named_parameters():
        if is_adapter(name):
            adapters[name] = weight.detach()
        else:
            layer = layers.get(base_name(name))
            wire = weight.detach().to(torch.bfloat16)
            weights[base_name(name)] = wire if layer is None else merge_adapter(weight, layer, torch.bfloat16)
    if adapters:
        save_file(adapters, adapters_path(folder, version))
    path = version_path(folder, version)
    partial = path.with_suffix(".partial")
    save_file(weights, partial)
    partial.replace(path)
