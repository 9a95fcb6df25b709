"""Model FLOP utilisation of the learner on a GPU: what the model needs, over what the device could have done meanwhile.

    python -m benchmarks.learner_mfu --json

Models of the shapes of Qwen2.5-0.5B, 1.5B and 7B with random weights, bf16 computation over float32 weights, whole
optimizer steps (forward, backward, clipping, AdamW), of which the first round is not timed. Operations are those of
`learner/model/flops.py`: recomputation does not count. `--peak-tflops` is for devices that PEAK_TFLOPS does not list.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learner_peers import LEARNING_RATE, rollout_of
from learner.config import Recomputation, TrainingConfig
from learner.model.model_loading import load_model
from learner.training.batch_sharding import TrainingSample
from learner.training.peak_memory import take_peak_bytes
from learner.training.trainer import Trainer
from services.contracts import Rollout
from services.errors import ConfigError

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "RTX 4090": 165.0}
"""Dense bf16 by NVIDIA's data sheets (SXM forms); the first name that is part of the device's counts."""

QWEN = {"vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 32_768}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": QWEN
    | {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5b": QWEN
    | {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "7b": QWEN
    | {
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
MEDIAN_TOKENS = (150, 1200)
"""Of prompt and response: worked solutions of competition problems."""
SPREAD = 0.5
MAX_TOKENS = 3072


def peak_tflops(device_name: str) -> float:
    """Of the device of that name; ConfigError when it is not listed."""
    for name, peak in PEAK_TFLOPS.items():
        if name in device_name:
            return peak
    raise ConfigError(f"the peak of {device_name!r} is not known", hint="give it with --peak-tflops")


def write_model(folder: Path, shape: dict[str, Any]) -> None:
    """Random bf16 weights in that shape of Qwen2."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    qwen2: Any = Qwen2ForCausalLM  # untyped in transformers
    qwen2(Qwen2Config(**shape)).to(torch.bfloat16).save_pretrained(folder)


def rounds_of(vocabulary: int, rounds: int, prompts: int) -> list[list[Rollout]]:
    """Random tokens in log-normal lengths."""
    generator = np.random.default_rng(0)
    lengths = np.exp(generator.normal(np.log(MEDIAN_TOKENS), SPREAD, (rounds, prompts, 2))).astype(int)
    lengths = np.clip(lengths, 1, MAX_TOKENS)

    def tokens(count: int) -> Any:
        return generator.integers(0, vocabulary, count).astype(np.int32)

    return [
        [rollout_of(number, index, (tokens(p), tokens(r))) for index, (p, r) in enumerate(of_round)]
        for number, of_round in enumerate(lengths)
    ]


def measure(
    folder: Path, config: TrainingConfig, peak: float, *, recomputation: Recomputation = "off", rounds: int = 3
) -> dict[str, float]:
    """MFU, speed and peak memory of all rounds but the first."""
    model = load_model(str(folder), device=config.device, gradient_checkpointing=recomputation)
    trainer = Trainer(model, config)
    flops = seconds = tokens = 0.0
    for number, rollouts in enumerate(rounds_of(model.loss_module.vocabulary, rounds, config.prompts_per_round)):
        stats = trainer.train_round(map(TrainingSample, rollouts))
        if number:
            lengths = tuple(int(r.prompt_tokens.size + r.response_tokens.size) - 1 for r in rollouts)
            flops += model.cost.training(lengths, stats.response_tokens)
            tokens += stats.prompt_tokens + stats.response_tokens
            seconds += stats.seconds
    return {
        "mfu": flops / seconds / (peak * 1e12),
        "tokens_per_s": tokens / seconds,
        "tflops": flops / seconds / 1e12,
        "peak_memory_bytes": take_peak_bytes(model.device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["0.5b", "1.5b"], choices=list(SHAPES))
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384)
    parser.add_argument("--prompts", type=int, default=128, help="of a round of two optimizer steps")
    parser.add_argument("--gradient-checkpointing", default="off", choices=["off", "light", "full"])
    parser.add_argument("--optimizer-offload", action="store_true", help="7b on one GPU needs it")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    peak = args.peak_tflops or peak_tflops(torch.cuda.get_device_name())
    config = TrainingConfig(
        prompts_per_round=args.prompts,
        learning_rate=LEARNING_RATE,
        micro_batch_tokens=args.micro_batch_tokens,
        optimizer_offload=args.optimizer_offload,
        device="cuda",
    )
    results = {}
    for name in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), SHAPES[name])
            results[name] = measure(Path(folder), config, peak, recomputation=args.gradient_checkpointing)
        if not args.json:
            print(name, " ".join(f"{key} {value:.4g}" for key, value in results[name].items()))
    if args.json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "peak_tflops": peak, **results}))


if __name__ == "__main__":
    main()
