"""Digests of what fixed runs end in: whoever changes only the shape of the code must not change one of them.

    python -m benchmarks.final_weights --json > before.json
    python -m benchmarks.final_weights --check before.json

Each run is a real `sept run` on one tiny model with scripted generators, whose answers depend on the task and on the
bytes of the weights that sampled it. A run's digest is over the learner's master weights and moments in its last
checkpoint and over the digest of every published version. The digests belong to one machine and one build of torch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3
from safetensors import safe_open

from benchmarks.runs import Run, base_settings, until, write_inputs
from services.run_folder import RunFolder

ROUNDS = 8
PROMPTS_PER_ROUND = 8
KILL_AFTER_ROUND = 4

RUNS: dict[str, dict[str, Any]] = {
    "nll": {},
    "nll, 2 ranks": {"training.ranks": 2},
    "lora": {"lora.rank": 4},
    "fixed data": {"training.data": "fixed"},
    "entropy": {"training.algorithm": "entropy"},
    "grpo": {"training.algorithm": "grpo", "sampling.rollouts_per_prompt": 8, "sampling.max_response_tokens": 2},
    "grpo, 2 ranks": {
        "training.algorithm": "grpo",
        "training.ranks": 2,
        "sampling.rollouts_per_prompt": 8,
        "sampling.max_response_tokens": 2,
    },
    "nll, learner killed": {},
}
"""What each run changes in the common settings."""


def settings(inputs: Path) -> dict[str, Any]:
    """What all runs have in common."""
    return base_settings(inputs) | {
        "sampling.max_response_tokens": 24,
        "sampling.rollouts_per_prompt": 2,
        "training.rounds": ROUNDS,
        "training.prompts_per_round": PROMPTS_PER_ROUND,
        "training.steps_per_round": 2,
        "training.max_staleness": 0,
        "checkpoint.every_rounds": 2,
        "generator.engine": "scripted",
        "generator.count": 2,
        "generator.max_in_flight": 8,
        "redis.lease_s": 3,
    }


def write_graded_inputs(folder: Path) -> None:
    """A model whose tokens all read as the number 1 or 2, so that half of the answers to 2 are right."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    write_inputs(folder, seed=5, prompts=5 * PROMPTS_PER_ROUND)
    end = "<end>"
    digits = {str(digit): digit for digit in range(10)}  # what questions are made of
    words = {f"{1 + index % 2}.{'0' * (1 + index // 2)}": index for index in range(10, 256)}
    tokenizer = Tokenizer(models.WordLevel(vocab={**digits, **words, end: 256}, unk_token=end))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast: Any = PreTrainedTokenizerFast  # untyped in transformers
    fast(tokenizer_object=tokenizer, eos_token=end).save_pretrained(folder / "model")
    rows = [{"question": str(number), "answer": "2"} for number in range(100, 100 + 5 * PROMPTS_PER_ROUND)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


async def kill_learner(run: Run) -> None:
    """SIGKILL, once the round before is recorded."""

    async def ready() -> bool:
        return run.rounds_done() >= KILL_AFTER_ROUND

    await until(ready, f"round {KILL_AFTER_ROUND}")
    pid = run.pid_of("learner")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def digest_of(folder: RunFolder) -> str:
    """Over the last checkpoint's tensors and the digests of all versions that the store holds."""
    hasher = blake3()
    newest = folder.checkpoint_of(folder.checkpointed()[-1])
    for path in sorted(newest.path.glob("*.safetensors")):
        with safe_open(path, framework="np") as state:
            for name in sorted(state.keys()):
                tensor = state.get_tensor(name)
                hasher.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
                hasher.update(tensor.tobytes())
    for path in sorted(folder.weights.glob("v*/manifest.json")):
        hasher.update(json.loads(path.read_bytes())["digest"].encode())
    return hasher.hexdigest()[:32]


async def measure(folder: Path, names: list[str]) -> dict[str, str]:
    """The digest of each run."""
    plain, graded = folder / "plain", folder / "graded"
    write_inputs(plain, seed=5, prompts=5 * PROMPTS_PER_ROUND)
    write_graded_inputs(graded)
    found = {}
    for number, name in enumerate(names):
        inputs = graded if name.startswith("grpo") else plain
        run = Run(folder / f"run-{number}", settings(inputs) | RUNS[name])
        finished = await run.whole((lambda run=run: kill_learner(run)) if name.endswith("killed") else None)  # type: ignore[misc]
        found[name] = digest_of(finished)
        print(f"{found[name]}  {name}", file=sys.stderr, flush=True)
    return found


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The runs that do not end in the same bits."""
    return [name for name, digest in now.items() if before.get(name) != digest]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=RUNS, nargs="+", default=list(RUNS))
    parser.add_argument("--check", type=Path, help="exit with 1 unless the digests are those of this file")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, to look at them")
    parser.add_argument("--json", action="store_true", help="print nothing but the result on standard output")
    options = parser.parse_args()
    folder = (options.keep or Path(tempfile.mkdtemp(prefix="sept-final-weights-"))).resolve()
    found = asyncio.run(measure(folder, options.only))
    changed = differences(json.loads(options.check.read_text()), found) if options.check else []
    if options.keep is None:
        shutil.rmtree(folder)
    if changed:
        print(f"other bits: {', '.join(changed)}", file=sys.stderr)
    print(json.dumps(found) if options.json else json.dumps(found, indent=2))
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
