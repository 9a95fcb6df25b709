"""Real successive versions of a model, from a short fp32-master AdamW training; knows nothing of deltas or stores.

Plain next-token loss on text in tiny batches: what matters here is how AdamW moves bf16 weights at a given learning
rate, not what the model learns. Version 0 is the checkpoint, version n the weights after n updates.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

WEIGHT_DECAY = 0.01
BATCH_TEXTS = 2
MAX_TOKENS = 192


def version_path(folder: Path, version: int) -> Path:
    return folder / f"v{version:05d}.safetensors"


def train_versions(model: Path, texts: Path, folder: Path, *, learning_rate: float, keep: Collection[int]) -> None:
    """Trains up to the last version of `keep` and saves those, in bf16, into `folder`; present ones are not redone.

    Args:
        model: Hugging Face folder.
        texts: JSON lines with `question` and `answer`.
        keep: versions to save.
    """
    if all(version_path(folder, version).exists() for version in keep):
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    batches = _batches(tokenizer, texts)
    for version in range(max(keep) + 1):
        if version in keep:
            _save(network, version_path(folder, version))
        tokens, labels = next(batches)
        network(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _batches(tokenizer: Any, texts: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless ([B, T] tokens, [B, T] labels); padding carries no loss."""
    rows = [json.loads(line) for line in texts.read_text().splitlines()]
    encoded = [tokenizer.encode(f"{row['question']}\n{row['answer']}")[:MAX_TOKENS] for row in rows[:4096]]
    at = 0
    while True:
        chosen = [encoded[(at + offset) % len(encoded)] for offset in range(BATCH_TEXTS)]
        at += BATCH_TEXTS
        width = max(len(tokens) for tokens in chosen)
        yield (
            torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in chosen]),
            torch.tensor([tokens + [-100] * (width - len(tokens)) for tokens in chosen]),
        )


def _save(network: torch.nn.Module, path: Path) -> None:
    """Named parameters, so that a tied weight is saved once."""
    partial = path.with_suffix(".partial")
    save_file({name: weight.detach().to(torch.bfloat16) for name, weight in network.named_parameters()}, partial)
    partial.replace(path)
