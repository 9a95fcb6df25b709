"""What a person is told when a run is over: what came of it, where the model is, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.operate.durations import in_words
from services.contracts import EvaluationMetrics, RoundMetrics
from services.run_folder import RunFolder


def ending(folder: RunFolder) -> list[str]:
    """Lines about a run that ended without an error: result, change, the model's place, next commands."""
    rounds = list(folder.rounds())
    done, total, where = len(rounds), folder.rounds_total, folder.path
    finished = 0 < total <= done
    if not rounds:
        return [f"stopped before the first round; start it again: sept run {folder.config}"]
    seconds = sum(metrics.round_s for metrics in rounds)
    state = "finished" if finished else "stopped"
    lines = [f"{state}: {done} of {max(total, done)} rounds, {in_words(seconds)} of training"]
    lines += [f"  {line}" for line in changes(rounds)]
    newest = rounds[-1].weight_version
    lines.append(f"model: version {newest}; write it as a Hugging Face folder: sept export --run {where} MODEL_FOLDER")
    lines.append(f"look at it again: sept page {where}")
    if not finished:
        lines.append(f"go on: sept run {folder.config}")
    elif not any(metrics.evaluations for metrics in rounds):
        lines.append(f"measure it: sept eval {where} --benchmarks math500")
    return lines


def changes(rounds: Sequence[RoundMetrics]) -> list[str]:
    """What changed from the first measurement to the last: pass@1 where the run evaluated, the loss, the entropy."""
    found = []
    evaluations = [one for metrics in rounds for one in metrics.evaluations]
    if evaluations:
        last = evaluations[-1]
        first = next(one for one in evaluations if one.temperature == last.temperature)
        found.append(_gain(first, last))
    if len(rounds) > 1:
        found.append(f"loss {rounds[0].loss:.4f} in the first round, {rounds[-1].loss:.4f} in the last")
    return found


def _gain(first: EvaluationMetrics, last: EvaluationMetrics) -> str:
    text = f"pass@1 {pass_at_1(last):.1%} at version {last.weight_version}, temperature {last.temperature:g}"
    if first.weight_version == last.weight_version:
        return text
    gained = 100 * (pass_at_1(last) - pass_at_1(first))
    return f"{text}; {pass_at_1(first):.1%} at version {first.weight_version} ({gained:+.1f} points)"


def pass_at_1(measured: EvaluationMetrics) -> float:
    """The mean over benchmarks, or that of the only one; 0 .. 1."""
    return (measured.pass_at_k.get("mean") or next(iter(measured.pass_at_k.values())))[1]
