"""What a run leaves for people to read: a line of metrics and a file of answers a round, and what trackers show.

Both are written once the round is trained and cut back to the checkpoint on resume. So a resumed run has every round
exactly once.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from learner.algorithms.base import Signal
from learner.data.prompts import Prompt
from learner.grading.signals import JudgedAnswer, group_classes, vote_share
from learner.monitoring.collapse import Health
from learner.monitoring.token_record import PiecesOf, token_fields
from learner.monitoring.trackers import Tracker, numbers_of
from learner.publisher import Publication
from learner.training.trainer import RoundStats
from services import durable
from services.contracts import EvaluationMetrics, Rollout, RoundMetrics
from services.durable import UNGUARDED, WriteGuard
from services.run_folder import RunFolder

TextOf = Callable[[NDArray[np.int32]], str]
"""Token ids to what a person reads."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A rollout as a person reads it."""

    prompt: Prompt
    rollout: Rollout
    text: str
    nll: float
    """Mean per response token, at the training temperature, when it was trained."""
    signal: Signal | None = None
    """For an algorithm that has signals."""
    judged: JudgedAnswer | None = None
    """Where the answers to a prompt were compared with each other."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """What the record says of each token."""


@dataclass(frozen=True, slots=True)
class TrainedRound:
    """A round between its last optimizer step and its line in metrics.jsonl. Producer: the loop."""

    round: int
    rollouts: list[Rollout]
    stats: RoundStats
    judged: Sequence[JudgedAnswer]
    """One a rollout; empty where answers were not compared with each other."""
    health: Health | None
    wait_s: float
    round_s: float
    """From the end of the round before, or of the start, to the end of this one."""
    publication: Future[Publication]

    def answers(self, prompts: Sequence[Prompt], text_of: TextOf, pieces_of: PiecesOf) -> list[Answer]:
        """One a rollout, in training order; `prompts` are the round's."""
        texts = [text_of(rollout.response_tokens) for rollout in self.rollouts]
        tokens = [
            token_fields(text, pieces_of(rollout.response_tokens), log_probs)
            for text, rollout, log_probs in zip(texts, self.rollouts, self.stats.log_probs, strict=True)
        ]
        signals: Iterable[Signal | None] = self.signals or repeat(None, len(self.rollouts))
        judged: Iterable[JudgedAnswer | None] = self.judged or repeat(None, len(self.rollouts))
        return [
            Answer(prompts[rollout.position], rollout, text, nll, signal, answer, of_tokens)
            for rollout, text, nll, signal, answer, of_tokens in zip(
                self.rollouts, texts, self.stats.nll, signals, judged, tokens, strict=True
            )
        ]

    @property
    def signals(self) -> list[Signal]:
        """One a rollout, from the trainer's scores or from texts; empty for algorithms without signals."""
        return list(self.stats.signals) or [answer.signal for answer in self.judged if answer.signal is not None]

    def metrics(
        self,
        *,
        epoch: float,
        pause_ms: float,
        tasks_reissued: int,
        peak_memory_bytes: int,
        evaluations: tuple[EvaluationMetrics, ...],
    ) -> RoundMetrics:
        """The round's line; waits until its version is published."""
        stats, publication = self.stats, self.publication.result()
        rewards = [signal.reward for signal in self.signals]
        return RoundMetrics(
            round=self.round,
            weight_version=self.round + 1,
            epoch=epoch,
            tau_s=self.rollouts[0].temperature,
            learning_rate=stats.learning_rate,
            loss=stats.loss,
            grad_norm=stats.grad_norm,
            **asdict(summarise(self.rollouts)) | ({} if self.health is None else asdict(self.health)),
            **({"reward_mean": float(np.mean(rewards))} if rewards else {}),
            **(asdict(summarise_votes(self.rollouts, self.judged)) if self.judged else {}),
            generator_tokens_per_s=stats.response_tokens / self.round_s,
            learner_tokens_per_s=(stats.prompt_tokens + stats.response_tokens) / stats.seconds,
            learner_wait_s=self.wait_s,
            train_s=stats.seconds,
            round_s=self.round_s,
            sync_bytes=publication.sync_bytes,
            sync_full_bytes=publication.manifest.full_bytes,
            publish_s=publication.seconds,
            pause_ms=pause_ms,
            tasks_reissued=tasks_reissued,
            peak_memory_bytes=peak_memory_bytes,
            evaluations=evaluations,
            time=time.time(),
        )


@dataclass(frozen=True, slots=True)
class LostRecords:
    """Rounds that were trained and whose records are gone or damaged; they cannot be made again."""

    metrics: tuple[int, ...]
    answers: tuple[int, ...]

    def __bool__(self) -> bool:
        return bool(self.metrics or self.answers)


class Records:
    """metrics.jsonl and rollouts/ of one run folder."""

    def __init__(self, folder: RunFolder, trackers: Sequence[Tracker] = (), *, fence: WriteGuard = UNGUARDED) -> None:
        self._folder = folder
        self._trackers = trackers
        self._fence = fence

    def cut_back(self, to_round: int) -> None:
        """Drop what was recorded of `to_round` and later rounds, which will be trained again; call it to begin with.

        A metrics.jsonl that lacks rounds before that stays beside the new one, for whoever can read more of it.
        """
        metrics_file = self._folder.metrics
        kept = [metrics for metrics in self._folder.rounds() if metrics.round < to_round]
        text = "".join(f"{metrics.as_line()}\n" for metrics in kept)
        with self._fence.guard():
            if metrics_file.exists() and metrics_file.read_bytes() != text.encode():
                if len({metrics.round for metrics in kept}) < to_round:
                    shutil.copyfile(metrics_file, metrics_file.with_name(f"metrics-damaged-{time.time_ns()}.jsonl"))
                durable.write_file(metrics_file, text)
            durable.clear_partial(self._folder.rollouts)
            for round_, path in self._folder.rollout_files():
                if round_ >= to_round:
                    path.unlink()
        for tracker in self._trackers:
            tracker.begin(to_round)

    def lost(self, to_round: int) -> LostRecords:
        """The rounds before `to_round` whose line or answers are not there as they were written."""
        rollouts_of = {metrics.round: metrics.rollouts for metrics in self._folder.rounds()}
        rounds = range(to_round)
        return LostRecords(
            metrics=tuple(round_ for round_ in rounds if round_ not in rollouts_of),
            answers=tuple(
                round_ for round_ in rounds if not _are_whole(self._folder.rollouts_of(round_), rollouts_of.get(round_))
            ),
        )

    def write(self, metrics: RoundMetrics, answers: Sequence[Answer]) -> None:
        """Record one round: answers first, so that every round in metrics.jsonl has its file."""
        lines = [json.dumps(_as_record(answer), ensure_ascii=False) for answer in answers]
        with self._fence.guard():
            durable.write_file(self._folder.rollouts_of(metrics.round), "\n".join(lines) + "\n")
            durable.append_line(self._folder.metrics, metrics.as_line())
        self._track(metrics)

    def add_evaluations(self, round_: int, evaluations: tuple[EvaluationMetrics, ...]) -> None:
        """Put into a round's line what was found out about its version after the line was written."""
        rounds = [
            metrics.model_copy(update={"evaluations": evaluations}) if metrics.round == round_ else metrics
            for metrics in self._folder.rounds()
        ]
        with self._fence.guard():
            durable.write_file(self._folder.metrics, "".join(f"{metrics.as_line()}\n" for metrics in rounds))
        for metrics in rounds:
            if metrics.round == round_:
                self._track(metrics)

    def close(self) -> None:
        """Nothing more is recorded."""
        for tracker in self._trackers:
            tracker.close()

    def _track(self, metrics: RoundMetrics) -> None:
        for tracker in self._trackers:
            tracker.log(metrics.round, numbers_of(metrics))


def _are_whole(path: Path, count: int | None) -> bool:
    """Whether every line of a round's file is one; `count`: how many there should be, if that is known."""
    try:
        lines = path.read_bytes().splitlines()
        parsed = [from_json(line) for line in lines]
    except (OSError, ValueError):
        return False
    return all(isinstance(line, dict) for line in parsed) and count in (None, len(parsed))


def _as_record(answer: Answer) -> dict[str, object]:
    rollout = answer.rollout
    return {
        "rollout_id": rollout.rollout_id,
        "round": rollout.round,
        "position": rollout.position,
        "sample": rollout.sample,
        "question": answer.prompt.question,
        "truth": answer.prompt.answer,
        "answer": answer.text,
        "temperature": rollout.temperature,
        "finish_reason": rollout.finish_reason,
        "response_tokens": int(rollout.response_tokens.size),
        "spans": [[span.weight_version, span.start, span.end] for span in rollout.spans],
        "staleness": rollout.staleness,
        "nll": answer.nll,
        **({} if answer.signal is None else {"reward": answer.signal.reward, "signal": answer.signal.weight}),
        **({} if answer.judged is None else {"class": answer.judged.class_, "vote": answer.judged.won}),
        **answer.tokens,
        "generator_id": rollout.generator_id,
        "queued_s": rollout.queued_s,
        "generate_s": rollout.generate_s,
    }


@dataclass(frozen=True, slots=True)
class RolloutSummary:
    """The fields of RoundMetrics that describe the round's rollouts."""

    rollouts: int
    prompt_tokens: int
    response_tokens: int
    response_length_mean: float
    truncated_ratio: float
    staleness_mean: float
    staleness_max: int
    spanning_rollouts: int


def summarise(rollouts: Sequence[Rollout]) -> RolloutSummary:
    """Counts and means over one round's rollouts."""
    lengths = np.array([rollout.response_tokens.size for rollout in rollouts])
    staleness = np.array([rollout.staleness for rollout in rollouts])
    return RolloutSummary(
        rollouts=len(rollouts),
        prompt_tokens=int(sum(rollout.prompt_tokens.size for rollout in rollouts)),
        response_tokens=int(lengths.sum()),
        response_length_mean=float(lengths.mean()),
        truncated_ratio=float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
        staleness_mean=float(staleness.mean()),
        staleness_max=int(staleness.max()),
        spanning_rollouts=sum(len(rollout.spans) > 1 for rollout in rollouts),
    )


@dataclass(frozen=True, slots=True)
class VoteSummary:
    """The fields of RoundMetrics that say how far the answers to the same prompt agree."""

    vote_share: float
    distinct_answers: float


def summarise_votes(rollouts: Sequence[Rollout], judged: Sequence[JudgedAnswer]) -> VoteSummary:
    """Means over a round's prompts; `judged` has one a rollout. A text without an answer agrees with nothing."""
    groups = group_classes(rollouts, judged).values()
    return VoteSummary(
        vote_share=float(np.mean([vote_share(classes) for classes in groups])),
        distinct_answers=float(np.mean([len(set(classes) - {None}) for classes in groups])),
    )
