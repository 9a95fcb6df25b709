"""The algorithm, read from top to bottom: collect, train, publish, remember.

    for every round r:
        collect exactly round r's rollouts, in task order
        take `steps_per_round` optimizer steps on them
        publish version r + 1, which admits the tasks of round r + 1 + max_staleness
        write a checkpoint, then release from Redis what it contains

Queues, files and threads live in the parts that `learner.run` wires together. There is no reward, verifier, teacher
or reference model here unless the objective asks for one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from learner import modelfolder
from learner.checkpoint import Checkpoint, Checkpoints
from learner.collector import Collector, Interrupted
from learner.config import CheckpointConfig, TrainingConfig
from learner.curriculum import Curriculum
from learner.model import TrainedModel, wire_tensors
from learner.publisher import Publication, Publisher
from learner.records import Answer, Records, summarise
from learner.report import Report
from learner.trainer import RoundStats, Trainer
from services.config import DeadlinesConfig
from services.contracts import Rollout, RoundMetrics
from services.streams.control import Control

log = structlog.get_logger()

PAUSE_CHECK_S = 0.5
"""How often a paused learner looks whether it may go on."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """A round between its last optimizer step and its line in metrics.jsonl."""

    round: int
    rollouts: list[Rollout]
    stats: RoundStats
    wait_s: float
    publication: Future[Publication]


@dataclass(slots=True)
class Loop:
    """One learner's run over its wired parts."""

    training: TrainingConfig
    checkpoint: CheckpointConfig
    deadlines: DeadlinesConfig
    model: TrainedModel
    trainer: Trainer
    text_of: Callable[[NDArray[np.int32]], str]
    """Token ids to what a person reads."""
    curriculum: Curriculum
    collector: Collector
    publisher: Publisher
    checkpoints: Checkpoints
    records: Records
    control: Control
    report: Report
    _version: int = 0
    _saved_version: int = 0
    _between_rounds: bool = True
    """False while the weights are those of no version."""
    _unrecorded: _Trained | None = None
    _round_started: float = field(default_factory=time.monotonic)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, resumed: Checkpoint | None) -> bool:
        """Train from `resumed` to the last round; False when asked to stop before it."""
        self._resume(resumed)
        try:
            for round_ in range(self._version, self.curriculum.rounds_total):
                if not self._may_start(round_):
                    break
                self._train(round_)
                if self._version - self._saved_version >= self.checkpoint.every_rounds:
                    self._save()
                if self.control.state().stop_after_round:
                    break
        except Interrupted:
            log.info("interrupted", round=self._version)
        if self._version > self._saved_version and self._between_rounds:
            self._save()
        finished = self._version == self.curriculum.rounds_total
        log.info("finished" if finished else "stopped", weight_version=self._version)
        return finished

    def stop(self) -> None:
        """Stop at the next safe point: at once while waiting, after the round while training."""
        self._stopping.set()
        self.collector.interrupt()

    # -- the steps of a round --------------------------------------------------------------------------------------

    def _train(self, round_: int) -> None:
        """Train the round as its rollouts arrive, then hand its version to the publisher."""
        waited_before = self.report.seconds_in("waiting_for_rollouts")
        rollouts: list[Rollout] = []
        self._between_rounds = False
        with self.report.during("training"):
            stats = self.trainer.train_round(self._arriving(round_, rollouts))
        self._between_rounds = True
        wait_s = self.report.seconds_in("waiting_for_rollouts") - waited_before
        self.report.trained(stats.prompt_tokens + stats.response_tokens)
        self._record()
        self._version = self.report.weight_version = round_ + 1
        with self.report.during("publishing"):
            tensors = wire_tensors(self.model)
        publication = self.publisher.submit(self._version, tensors)
        self._unrecorded = _Trained(round_, rollouts, stats, wait_s, publication)
        log.info(
            "round_trained",
            round=round_,
            loss=round(stats.loss, 4),
            response_tokens=stats.response_tokens,
            train_s=round(stats.seconds, 2),
            wait_s=round(wait_s, 2),
        )

    def _arriving(self, round_: int, rollouts: list[Rollout]) -> Iterator[Rollout]:
        """The round's rollouts in task order, each as soon as it is here; they are kept in `rollouts`."""
        for rollout in self.collector.in_order(
            round_, self.deadlines.rollouts_s, lambda: self.report.during("waiting_for_rollouts")
        ):
            rollouts.append(rollout)
            yield rollout

    def _issue(self, round_: int) -> None:
        """Issue a round's tasks; the version that admits them is published."""
        if round_ < self.curriculum.rounds_total:
            self.collector.expect(self.curriculum.tasks_of(round_))

    def _may_start(self, round_: int) -> bool:
        """False once asked to stop; waits as long as the run is paused."""
        with self.report.during("paused"):
            while self.control.state().paused and not self._stopping.is_set():
                self._stopping.wait(PAUSE_CHECK_S)
        return not self._stopping.is_set()

    # -- what is remembered ----------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Checkpoint, with the round's record written before it counts; then Redis may forget those rounds."""
        with self.report.during("checkpointing"):
            self.checkpoints.save(self._version, self.trainer.state_dict(), before_commit=self._record)
            self._saved_version = self._version
            self.collector.release(before_round=self._version)

    def _resume(self, resumed: Checkpoint | None) -> None:
        """Take up the checkpoint, publish its version (again), and issue the rounds that it admits."""
        if resumed is not None:
            self.trainer.load_state_dict(resumed.tensors)
            self._version = self._saved_version = resumed.weight_version
            log.info("resuming", weight_version=self._version, rounds_total=self.curriculum.rounds_total)
        self.records.cut_back(self._version)
        self.report.weight_version = self._version
        with self.report.during("publishing"):
            files = modelfolder.model_files(self.model.folder) if self._version == 0 else None
            self.publisher.submit(self._version, wire_tensors(self.model), files).result()
        for round_ in range(self._version, self._version + self.training.max_staleness + 1):
            self._issue(round_)
        self.publisher.on_published = lambda version: self._issue(version + self.training.max_staleness)

    def _record(self) -> None:
        """Write the last trained round's metrics and answers, once its version is published."""
        trained, self._unrecorded = self._unrecorded, None
        if trained is None:
            return
        with self.report.during("publishing"):
            publication = trained.publication.result()
        metrics = self._metrics(trained, publication)
        self.records.write(metrics, self._answers(trained))

    def _answers(self, trained: _Trained) -> Sequence[Answer]:
        prompts = self.curriculum.prompts_of(trained.round)
        return [
            Answer(prompts[rollout.index], rollout, self.text_of(rollout.response_tokens), nll)
            for rollout, nll in zip(trained.rollouts, trained.stats.nll, strict=True)
        ]

    def _metrics(self, trained: _Trained, publication: Publication) -> RoundMetrics:
        now, stats = time.monotonic(), trained.stats
        round_s, self._round_started = now - self._round_started, now
        return RoundMetrics(
            round=trained.round,
            weight_version=trained.round + 1,
            epoch=self.curriculum.epoch_at(trained.round),
            tau_s=trained.rollouts[0].temperature,
            learning_rate=stats.learning_rate,
            loss=stats.loss,
            grad_norm=stats.grad_norm,
            **asdict(summarise(trained.rollouts)),
            generator_tokens_per_s=stats.response_tokens / round_s,
            learner_tokens_per_s=(stats.prompt_tokens + stats.response_tokens) / stats.seconds,
            learner_wait_s=trained.wait_s,
            train_s=stats.seconds,
            round_s=round_s,
            sync_bytes=publication.sync_bytes,
            sync_full_bytes=publication.manifest.full_bytes,
            publish_s=publication.seconds,
            pause_ms=self.report.generator_pause_ms(),
            tasks_reissued=self.collector.reissued,
            time=time.time(),
        )
