"""Training speed and memory against TRL's SFTTrainer and a bare transformers loop, on the same sequences.

    python -m benchmarks.learner --model PATH --texts gsm8k_train.jsonl --json

Every contender takes the same optimizer steps in a process of its own, on one thread, in turns; the first step of each
process is not timed. Each gets the fastest of its settings, which all compute the same loss without leaks between
neighbours: TRL with padded forward passes of 1 or 2 sequences, or the whole step end to end without padding
(transformers then masks by position); the bare loop with passes of 1 or 2; this project with micro-batches of 256 or
512 tokens and the given `gradient_checkpointing`. All keep float32 weights, gradients and two moments, and a tokenizer,
and get the environment in which this project starts a learner. Speeds are per processor second, which other programs on
the machine disturb less than the clock.

On a GPU machine it also prints `mfu`, how much of the GPU training uses (`benchmarks.learner_mfu`).

Without `--model`, a small random model; without `--texts`, random tokens with the length spread of GSM8K.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np

from deploy.placement import visible_gpus
from learner.config import Recomputation
from learner.parallel import launch_env

SETTINGS = {"sept": (256, 512), "trl": (1, 2, 0), "bare": (1, 2)}
SMALL_VOCABULARY = 4096
KIB = 1024

Tokens = Sequence[int]


def read_pairs(model: Path, texts: Path | None, count: int) -> list[tuple[Tokens, Tokens]]:
    """(prompt, response) token ids."""
    if texts is None:
        generator = np.random.default_rng(0)
        # Medians and spread of GSM8K's questions and answers in tokens.
        lengths = np.exp(generator.normal(np.log([55, 120]), [0.35, 0.45], (count, 2))).astype(int) + 2
        return [
            (generator.integers(3, SMALL_VOCABULARY, p).tolist(), generator.integers(3, SMALL_VOCABULARY, r).tolist())
            for p, r in lengths
        ]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line) for line in texts.read_bytes().splitlines()[:count]]
    return [
        (tokenizer.encode(f"{row['question']}\n"), [*tokenizer.encode(row["answer"]), tokenizer.eos_token_id])
        for row in rows
    ]


def write_small_model(folder: Path) -> None:
    """About eleven million random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from benchmarks.learner_peers import number_tokenizer

    qwen2: Any = Qwen2ForCausalLM  # untyped in transformers
    qwen2(
        Qwen2Config(
            vocab_size=SMALL_VOCABULARY,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(folder)
    number_tokenizer(SMALL_VOCABULARY).save_pretrained(folder)


def run_here(request: dict[str, Any]) -> dict[str, Any]:
    """One contender's steps in this process."""
    import torch

    from benchmarks.learner_peers import PEERS, run_sept

    torch.set_num_threads(1)
    pairs = [(np.array(p, np.int32), np.array(r, np.int32)) for p, r in request["pairs"]]
    per_step = request["per_step"]
    steps = [pairs[start : start + per_step] for start in range(0, len(pairs), per_step)]
    ours = partial(run_sept, gradient_checkpointing=request["recompute"])
    peer = ours if request["peer"] == "sept" else PEERS[request["peer"]]
    done = peer(Path(request["model"]), steps, request["setting"])
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"losses": done.losses, "cpu_s": done.cpu_s, "peak_rss_bytes": peak_kib * KIB}


def run_apart(request: dict[str, Any]) -> dict[str, Any]:
    """The same in a fresh process with one thread, so that its peak memory is its own."""
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    env = os.environ | one_thread | launch_env.ON_CPU
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        request = request | {"answer": str(answer)}
        command = [sys.executable, "-m", "benchmarks.learner", "--worker"]
        subprocess.run(command, input=json.dumps(request).encode(), env=env, stdout=subprocess.DEVNULL, check=True)
        result: dict[str, Any] = json.loads(answer.read_text())
    return result


def compare(
    model: Path, pairs: list[tuple[Tokens, Tokens]], per_step: int, repeats: int, recompute: Recomputation
) -> dict[str, Any]:
    """Alternating runs of all contenders and settings; a contender's numbers are those of its fastest setting."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    base = {"model": str(model), "pairs": pairs, "per_step": per_step, "recompute": recompute}
    for _ in range(repeats):
        for peer, settings in SETTINGS.items():
            for setting in settings:
                runs.setdefault((peer, setting), []).append(run_apart(base | {"peer": peer, "setting": setting}))
    timed = pairs[per_step:]
    responses, total = sum(len(r) for _, r in timed), sum(len(p) + len(r) for p, r in timed)
    contenders: dict[str, dict[str, Any]] = {}
    for (peer, setting), results in runs.items():
        seconds = median(sum(result["cpu_s"][1:]) for result in results)
        entry = {
            "setting": setting,
            "response_tokens_per_s": responses / seconds,
            "total_tokens_per_s": total / seconds,
            "peak_rss_bytes": max(result["peak_rss_bytes"] for result in results),
            "losses": results[0]["losses"],
        }
        contenders.setdefault(peer, {"all": []})["all"].append(entry)
    for contender in contenders.values():
        contender |= max(contender["all"], key=lambda entry: float(entry["total_tokens_per_s"]))
    return {"contenders": contenders, **_ratios(contenders)}


def _ratios(contenders: dict[str, dict[str, Any]]) -> dict[str, float]:
    ours = contenders["sept"]
    ratios = {}
    for peer, theirs in contenders.items():
        if peer != "sept":
            ratios[f"speedup_vs_{peer}"] = ours["total_tokens_per_s"] / theirs["total_tokens_per_s"]
            ratios[f"peak_rss_ratio_vs_{peer}"] = ours["peak_rss_bytes"] / theirs["peak_rss_bytes"]
            differences = np.abs(np.subtract(ours["losses"], theirs["losses"]))
            ratios[f"loss_diff_vs_{peer}"] = float(differences.max())
    return ratios


def mfu() -> dict[str, float]:
    """Utilisation of the GPU by each model of `benchmarks.learner_mfu`, which says more by itself."""
    command = [sys.executable, "-m", "benchmarks.learner_mfu", "--json"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return {name: result["mfu"] for name, result in found.items() if isinstance(result, dict)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder")
    parser.add_argument("--texts", type=Path, help="JSON lines with question and answer")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps, the first of which is not timed")
    parser.add_argument("--per-step", type=int, default=8, help="sequences of an optimizer step; even")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--gradient-checkpointing", choices=get_args(Recomputation), default="full", help="this project's"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        request = json.loads(sys.stdin.read())
        Path(request["answer"]).write_text(json.dumps(run_here(request)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or Path(folder)
        if args.model is None:
            write_small_model(model)
        pairs = read_pairs(model, args.texts if args.model else None, args.steps * args.per_step)
        result = compare(model, pairs, args.per_step, args.repeats, args.gradient_checkpointing)
    if visible_gpus():
        result["mfu"] = mfu()
    if args.json:
        print(json.dumps(result))
        return
    for name, contender in result["contenders"].items():
        print(
            f"{name:5} {contender['total_tokens_per_s']:8.1f} tokens/s, of them responses "
            f"{contender['response_tokens_per_s']:8.1f}, peak {contender['peak_rss_bytes'] / 1e9:.2f} GB, "
            f"fastest setting {contender['setting']}"
        )
    for name, value in result.items():
        if name != "contenders":
            print(name, value if isinstance(value, dict) else f"{value:.4g}")


if __name__ == "__main__":
    main()
