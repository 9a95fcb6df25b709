"""Tokens per second of a generator in a run against bare `vllm.LLM.generate` on the same prompts and settings.

    python -m benchmarks.generator --json

Ours: `sept run` with a fixed data set, so that the generator answers all prompts while nobody trains: leases, spans,
heartbeats and completions included. Bare: one `LLM.generate` call with all prompts in a process of its own. Before they
are timed both have answered as many prompts as they take at once. Both have the same model, engine settings and core;
runs alternate, and each number is the median.

Responses end by chance, as they do in earnest; with `--stop-tokens 0` all are of one length.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.runs import PROMPT_TOKENS, Run, answers, base_settings, pin_process, two_cores, write_inputs
from services.run_folder import RunFolder

TEMPERATURE = 0.6
FIRST_STOP_TOKEN = 100


def settings(inputs: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything is asked at once, and trained as one round, which is not timed."""
    return base_settings(inputs) | {
        "sampling.tau_start": TEMPERATURE,
        "sampling.max_response_tokens": options.response_tokens,
        "sampling.stop_tokens": ",".join(stop_tokens(options)),
        "training.data": "fixed",
        "training.rounds": 1,
        "training.prompts_per_round": options.in_flight + options.prompts,
        "training.steps_per_round": 1,
        "generator.max_in_flight": options.in_flight,
    }


def stop_tokens(options: argparse.Namespace) -> tuple[str, ...]:
    """Ids of as many ordinary tokens as are asked for; a random model draws each about once in 257 tokens."""
    return tuple(str(FIRST_STOP_TOKEN + number) for number in range(options.stop_tokens))


def ours(folder: Path, inputs: Path, options: argparse.Namespace, cores: tuple[int, int]) -> float:
    """Tokens per second of one run's generator, which has the second core to itself."""
    run = Run(folder, settings(inputs, options))
    others = dict.fromkeys(("redis", "services", "learner"), cores[0])
    return tokens_per_s(asyncio.run(run.whole(lambda: run.pin({**others, "generator-0": cores[1]}))), options.in_flight)


def tokens_per_s(folder: RunFolder, warm_up: int) -> float:
    """Response tokens per second after so many completions, to the last one; an answer's tokens come evenly.

    An answer's time begins with its lease, so what waits for a place in the engine counts against the speed.
    """
    ends = sorted((r["queued_s"] + r["generate_s"], r["generate_s"], r["response_tokens"]) for r in answers(folder))
    start = ends[warm_up - 1][0]
    tokens = sum(tokens * min(1.0, (end - start) / took_s) for end, took_s, tokens in ends[warm_up:])
    return float(tokens / (ends[-1][0] - start))


def bare(inputs: Path, options: argparse.Namespace, core: int) -> float:
    """Tokens per second of `LLM.generate` in a fresh process, which writes them into a file: vLLM prints, too."""
    answer = inputs / "bare.txt"
    command = [sys.executable, "-m", "benchmarks.generator", "--worker", str(answer), "--core", str(core)]
    command += ["--in-flight", str(options.in_flight), "--response-tokens", str(options.response_tokens)]
    command += ["--stop-tokens", str(options.stop_tokens)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)
    return float(answer.read_text())


def generate_bare(inputs: Path, options: argparse.Namespace) -> float:
    """In the worker: tokens per second, with the engine settings of `generator.engines.vllm.options`."""
    pin_process(os.getpid(), options.core)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM, SamplingParams
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    from learner.config import DataConfig
    from learner.data.prompts import load_prompts
    from learner.data.stop_tokens import stop_token_ids
    from learner.model_folder.tokenizer import load_tokenizer

    model = inputs / "model"
    data = DataConfig(path=str(inputs / "prompts.jsonl"), chat_template="none", max_prompt_tokens=PROMPT_TOKENS)
    tokenizer = load_tokenizer(model)
    prompts = [{"prompt_token_ids": prompt.tokens.tolist()} for prompt in load_prompts(data, tokenizer)]
    llm = LLM(
        model=str(model),
        skip_tokenizer_init=True,
        generation_config="vllm",
        dtype="float32",
        max_model_len=PROMPT_TOKENS + options.response_tokens,
        max_num_seqs=options.in_flight,
        enforce_eager=True,
        kv_cache_memory_bytes=2**28,
        disable_log_stats=True,
        distributed_executor_backend=UniProcExecutor,
    )
    params = SamplingParams(
        temperature=TEMPERATURE,
        max_tokens=options.response_tokens,
        stop_token_ids=list(stop_token_ids(model, tokenizer, None, stop_tokens(options))),
        ignore_eos=True,
        detokenize=False,
    )
    llm.generate(prompts[: options.in_flight], params, use_tqdm=False)
    started = time.perf_counter()
    done = llm.generate(prompts[options.in_flight :], params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return sum(len(answer.outputs[0].token_ids) for answer in done) / seconds


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The benchmark's result."""
    write_inputs(
        folder, seed=0, prompts=options.in_flight + options.prompts, hidden=options.hidden, layers=options.layers
    )
    first, second = two_cores()
    speeds: dict[str, list[float]] = {"bare": [], "ours": []}
    for repeat in range(options.repeats):
        speeds["bare"].append(bare(folder, options, second))
        speeds["ours"].append(ours(folder / f"run-{repeat}", folder, options, (first, second)))
    medians = {name: median(values) for name, values in speeds.items()}
    return {
        "ratio_to_bare_vllm": round(medians["ours"] / medians["bare"], 3),
        "tokens_per_s": round(medians["ours"], 1),
        "bare_tokens_per_s": round(medians["bare"], 1),
        "all": {name: [round(value, 1) for value in values] for name, values in speeds.items()},
        "prompts": options.prompts,
        "in_flight": options.in_flight,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--response-tokens", type=int, default=128, help="longest response")
    parser.add_argument("--stop-tokens", type=int, default=2, help="ordinary tokens that end a response")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=128, help="width of the model")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        options.worker.write_text(str(generate_bare(options.worker.parent, options)))
        return
    with tempfile.TemporaryDirectory(prefix="sept-generator-") as name:
        result = compare(Path(name).resolve(), options)
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
