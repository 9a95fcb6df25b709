"""A run's folder as a learner leaves it: rounds, answers with formulas and version spans, settings, logs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from learner.monitoring.token_record import token_fields
from services import durable
from services.contracts import EvaluationMetrics, RoundMetrics
from services.run_folder import RunFolder

KNOWN_QUESTION = "What is $\\frac{1}{2} + \\frac{1}{3}$?"
KNOWN_ANSWER = "Over the denominator $6$: $$\\frac{3}{6} + \\frac{2}{6} = \\frac{5}{6}$$ so \\boxed{\\frac{5}{6}}."
ODD_ANSWER = "It costs \\$5 or \\$6, **so** $\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}$."
HOSTILE_ANSWER = '<img src=x onerror="document.title=1">'


def metrics(number: int, **changes: Any) -> RoundMetrics:
    """A plausible round."""
    values = {
        "round": number,
        "weight_version": number + 1,
        "epoch": number / 100,
        "tau_s": 0.6 + 0.4 * min(1.0, number / 200),
        "learning_rate": 1e-7,
        "loss": 1.2 * math.exp(-number / 120) + 0.2 + 0.03 * math.sin(number * 1.7),
        "grad_norm": 0.8 + 0.1 * math.sin(number),
        "rollouts": 128,
        "prompt_tokens": 4000,
        "response_tokens": 64_000,
        "response_length_mean": 500 + 60 * math.sin(number / 9),
        "truncated_ratio": 0.03 + 0.02 * math.cos(number / 15),
        "staleness_mean": 0.9,
        "staleness_max": 1,
        "spanning_rollouts": 17,
        "generator_tokens_per_s": 2400 + 200 * math.sin(number / 3),
        "learner_tokens_per_s": 5200.0,
        "learner_wait_s": 9.0,
        "train_s": 14.0,
        "round_s": 25.0,
        "sync_bytes": 31_000_000,
        "sync_full_bytes": 3_100_000_000,
        "publish_s": 2.5,
        "pause_ms": 42.0 + number % 7,
        "tasks_reissued": 0,
        "time": 1_790_000_000.0 + 25 * number,
    }
    return RoundMetrics.model_validate(values | changes)


def measured(version: int) -> EvaluationMetrics:
    """A model that gets better, on two benchmarks."""
    share = 0.2 + 0.6 * (1 - math.exp(-version / 100))
    of = {"sums": {1: share, 8: min(1.0, share + 0.15)}, "words": {1: 0.8 * share, 8: 0.9 * share}}
    mean = {k: (of["sums"][k] + of["words"][k]) / 2 for k in (1, 8)}
    return EvaluationMetrics(weight_version=version, temperature=1.0, samples=8, pass_at_k=of | {"mean": mean})


def rollout(round_: int, index: int, **changes: Any) -> dict[str, Any]:
    """One recorded answer, as it stands in its round's file."""
    values: dict[str, Any] = {
        "rollout_id": f"r{round_:06d}-{index:05d}.0",
        "round": round_,
        "position": index,
        "sample": 0,
        "question": f"How much is {round_} + {index}?",
        "truth": str(round_ + index),
        "answer": f"It is ${round_ + index}$.",
        "temperature": 0.6,
        "finish_reason": "stop",
        "response_tokens": 40,
        "spans": [[max(0, round_ - 1), 0, 25], [round_, 25, 40]] if index % 2 and round_ else [[round_, 0, 40]],
        "staleness": int(bool(index % 2 and round_)),
        "nll": 0.41,
        "generator_id": "generator-0",
        "queued_s": 0.1,
        "generate_s": 2.0,
    }
    return values | changes


def with_tokens() -> dict[str, Any]:
    """What a record has of an answer of nine tokens, the last of which ends it; two versions sampled them."""
    pieces = ["It", " is", " 2", "4", "\n", "or", " 😀", ".", ""]
    log_probs = np.log(np.array([0.99, 0.5, 0.3, 0.05, 1.0, 0.002, 1e-9, 0.9, 0.75], np.float32))
    text = "".join(pieces)
    spans = [[4, 0, 6], [5, 6, 9]]
    return {"answer": text, "response_tokens": 9, "spans": spans} | token_fields(text, pieces, log_probs)


def write_rollouts(folder: RunFolder, round_: int, lines: list[dict[str, Any]]) -> None:
    """One round's file."""
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    durable.write_file(folder.rollouts_of(round_), text)


def record(path: Path, rounds: int = 240) -> RunFolder:
    """The folder of a run that has done so many rounds."""
    folder = RunFolder(path).create()
    identity = json.loads(folder.identity.read_text()) | {"rounds_total": 300}
    durable.write_file(folder.identity, json.dumps(identity))
    history = (
        metrics(number, evaluations=(measured(number + 1),) if number % 100 == 19 else ()) for number in range(rounds)
    )
    durable.write_file(folder.metrics, "".join(f"{one.as_line()}\n" for one in history))
    for number in range(max(0, rounds - 3), rounds):
        write_rollouts(
            folder, number, [rollout(number, index) for index in range(3)] + [rollout(number, 3, **with_tokens())]
        )
    answers = [
        rollout(rounds - 1, 0, question=KNOWN_QUESTION, answer=KNOWN_ANSWER, truth="5/6"),
        rollout(rounds - 1, 1, question="Say something nasty.", answer=HOSTILE_ANSWER),
        rollout(rounds - 1, 2, answer=f"It is $\\unknown{{x}}$ and 100 % sure. {ODD_ANSWER}", finish_reason="length"),
    ]
    write_rollouts(folder, rounds - 1, answers)
    durable.write_file(folder.config, "[run]\nseed = 0\n\n[sampling]\ntau_start = 0.6  # low\n")
    durable.write_file(
        folder.logs / "learner.log",
        "2026-01-02T03:04:05.000000Z [info     ] published   part=learner weight_version=1\n"
        "2026-01-02T03:04:06.000000Z [warning  ] lease_lost  part=learner task_id=r000001-00001\n"
        "sept: the disk is full\n\nhint: make room\n",
    )
    return folder
