"""The algorithm, read from top to bottom: collect, train, publish, remember.

    for every round r:
        collect exactly round r's rollouts, in task order
        take `steps_per_round` optimizer steps on them
        publish version r + 1, which admits the tasks of round r + 1 + max_staleness
        write a checkpoint, then release from Redis what it contains
        heed what people ask for: a checkpoint, a version to go back to, a pause, a stop

Queues, files and threads live in the parts that `learner.run` wires together. There is no reward, verifier, teacher
or reference model here unless the objective asks for one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import JsonValue

from learner.config import CheckpointConfig, TrainingConfig
from learner.data.curriculum import Curriculum
from learner.evaluation.during import Evaluated, Evaluations
from learner.grading.rewards import Rewards
from learner.model import hf_checkpoint
from learner.model.canary import compute_canaries
from learner.model.trained_model import TrainedModel
from learner.model.wire_tensors import wire_adapters, wire_tensors
from learner.monitoring.collapse import CollapseMonitor
from learner.monitoring.heartbeat import LEARNER_ID, HeartbeatReporter
from learner.monitoring.records import Records, TrainedRound
from learner.publisher import Publication, Publisher
from learner.rollouts.collector import Collector, Interrupted
from learner.rollouts.rollout_source import DrawnOnce, Sampled, Supply
from learner.training.checkpoint import Checkpoint, Checkpoints
from learner.training.peak_memory import take_peak_bytes
from learner.training.trainer import Trainer
from services.config import DeadlinesConfig
from services.contracts import Rollout
from services.errors import CheckpointError
from services.streams.control import Control, ControlState
from services.streams.events import EventLog

if TYPE_CHECKING:
    from learner.monitoring.traces import Traces

log = structlog.get_logger()

PAUSE_CHECK_S = 0.5
"""How often a paused learner looks whether it may go on."""


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
    events: EventLog
    report: HeartbeatReporter
    rewards: Rewards | None = None
    """Set when the objective asks for rewards."""
    canary_prompts: int = 0
    """Canaries that every version carries."""
    guard: CollapseMonitor | None = None
    """Set when the model's health is measured."""
    evaluations: Evaluations | None = None
    """Set when versions are to be evaluated."""
    traces: Traces | None = None
    """Set when a collector of traces is named."""
    _evaluation: Future[Evaluated] | None = None
    """Of `_version`, until its results are recorded."""
    _supply: Supply = field(init=False)
    _version: int = 0
    _saved_version: int = 0
    _steps: int = 0
    """Optimizer steps that `_version` is made of; when the trainer has taken more, its weights are of no version."""
    _unrecorded: TrainedRound | None = None
    _round_began: float = 0.0
    """On the monotonic clock: when the round before had been trained."""
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """The settings say where rollouts come from."""
        if self.training.data == "online":
            self._supply = Sampled(self.curriculum, self.collector, self._collected, self.training.max_staleness)
        else:
            self._supply = DrawnOnce(self.curriculum, self.collector, self._collected)

    def run(self, resumed: Checkpoint | None) -> bool:
        """Train from `resumed` to the last round; False when asked to stop before it."""
        self._resume(resumed)
        self._round_began = time.monotonic()
        self.report.enter("training")  # but for what is accounted as a wait or as something else
        self._go_through_rounds()
        finished = self._is_over()
        log.info("finished" if finished else "stopped", weight_version=self._version)
        return finished

    def _go_through_rounds(self) -> None:
        try:
            while self._may_go_on():
                self._train(self._version)
                if self._heed().stop_after_round:
                    break
        except Interrupted:
            log.info("interrupted", round=self._version)
        if self._version not in (self._saved_version, self.checkpoints.begun) and self.trainer.steps == self._steps:
            self._save()
        self._commit()
        self._record()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Stop at the next safe point: at once while waiting, after the round while training."""
        self._stopping.set()
        self.collector.interrupt()
        if self.evaluations is not None:
            self.evaluations.interrupt()

    # -- the steps of a round --------------------------------------------------------------------------------------

    def _train(self, round_: int) -> None:
        """Train the round as its rollouts arrive, then hand its version to the publisher."""
        waited_before = self.report.seconds_in("waiting_for_rollouts")
        rollouts: list[Rollout] = []
        if self.rewards is None:
            rewards = None
            stats = self.trainer.train_round(self._taken(self._arriving(round_, rollouts)))
        else:
            arrived = list(self._arriving(round_, rollouts))
            rewards = self.rewards.collect()
            stats = self.trainer.train_round(self._taken(arrived), rewards)
        if self.traces is not None:
            self.traces.round_trained(round_)
        health = None if self.guard is None else self.guard.examine(self.model, rollouts)
        now = time.monotonic()
        round_s, self._round_began = now - self._round_began, now
        wait_s = self.report.seconds_in("waiting_for_rollouts") - waited_before
        self.report.count_tokens(stats.prompt_tokens + stats.response_tokens)
        self._record()
        self._commit()
        self._version, self._steps = round_ + 1, self.trainer.steps
        self.report.update(weight_version=self._version)
        with self.report.during("publishing"):
            publication = self._publish()
        publication.add_done_callback(self._tell_failure)
        self._evaluate(publication)
        self._unrecorded = TrainedRound(round_, rollouts, stats, rewards, health, wait_s, round_s, publication)
        log.info(
            "round_trained",
            round=round_,
            loss=round(stats.loss, 4),
            response_tokens=stats.response_tokens,
            train_s=round(stats.seconds, 2),
            wait_s=round(wait_s, 2),
        )

    def _publish(self) -> Future[Publication]:
        """Hand the weights, as they are now, to the publisher as `_version`."""
        files = hf_checkpoint.model_files(self.model.folder) if self._version == 0 else None
        tensors = wire_tensors(self.model)
        canaries = compute_canaries(self.model, self.canary_prompts)
        return self.publisher.submit(self._version, tensors, files, canaries, wire_adapters(self.model))

    def _tell_failure(self, publication: Future[Publication]) -> None:
        """A version that cannot be published admits no tasks: nobody must wait for their rollouts."""
        if not publication.cancelled() and (error := publication.exception()) is not None:
            self.collector.fail(error)

    def _arriving(self, round_: int, rollouts: list[Rollout]) -> Iterator[Rollout]:
        """The round's rollouts in task order, each as soon as it is here; they are kept in `rollouts`."""
        prompts = self.curriculum.prompts_of(round_)
        for rollout in self._supply.of(round_):
            rollouts.append(rollout)
            if self.rewards is not None:
                self.rewards.submit(self.text_of(rollout.response_tokens), prompts[rollout.index].answer or "")
            yield rollout

    def _taken(self, rollouts: Iterable[Rollout]) -> Iterator[Rollout]:
        """The same rollouts; when the trainer takes each is noted where traces are wanted."""
        for rollout in rollouts:
            if self.traces is not None:
                self.traces.rollout_taken(rollout, self.collector.completed_at(rollout))
            yield rollout

    def _collected(self, round_: int) -> Iterator[Rollout]:
        return self.collector.in_order(
            round_, self.deadlines.rollouts_s, lambda: self.report.during("waiting_for_rollouts")
        )

    # -- what people ask for ---------------------------------------------------------------------------------------

    def _may_go_on(self) -> bool:
        """False once asked to stop and after the last round; waits as long as the run is paused."""
        while self._heed().paused and not (self._stopping.is_set() or self._is_over()):
            with self.report.during("paused"):
                self._stopping.wait(PAUSE_CHECK_S)
        return not (self._stopping.is_set() or self._is_over())

    def _is_over(self) -> bool:
        return self._version == self.curriculum.rounds_total

    def _heed(self) -> ControlState:
        """What people want by now. Between two rounds: what they asked for once is done, a checkpoint written."""
        wishes = self.control.state()
        if wishes.rollback_to is not None:
            self._roll_back(wishes.rollback_to)
            self.control.rollback_done(wishes.rollback_to)
        # A checkpoint records the round, evaluation included: it waits a round rather than hold up training.
        evaluating = self._evaluation is not None and not self._evaluation.done()
        unsaved = self._version - self._saved_version
        if not evaluating and unsaved and (wishes.checkpoint or unsaved >= self.checkpoint.every_rounds):
            if self.checkpoints.begun != self._version:
                self._save()
            if wishes.checkpoint or wishes.paused:  # somebody waits for it, or nothing else is to be done meanwhile
                self._commit()
        if not evaluating and wishes.checkpoint:
            self._answer("checkpointed", weight_version=self._version)
            self.control.checkpoint_done()
        return wishes

    def _roll_back(self, version: int) -> None:
        """Go back to the checkpoint of `version`, then go on as a resumed learner does.

        What came later is given up: checkpoints, versions, records, and the tasks and rollouts of its rounds, which
        are drawn anew. The wish stands until all of that is done, so a learner that dies over it does it again.
        """
        self._record()  # nothing is being published, evaluated or recorded from here on
        self._commit()
        before = self._version
        with self.report.during("rolling_back"):
            try:
                checkpoint = self.checkpoints.go_back(version)
            except CheckpointError as error:
                self._answer("not_rolled_back", weight_version=version, reason=f"{error.message}; {error.hint}")
                return
            self._supply.start_over(version)
            self.publisher.take_back(after=version)
        self._resume(checkpoint)
        self._round_began = time.monotonic()
        self._answer("rolled_back", weight_version=version, before=before)

    def _answer(self, action: str, **fields: JsonValue) -> None:
        """Leave word of what became of a wish, beside the wish."""
        log.info(action, **fields)
        self.events.append(LEARNER_ID, "control", action=action, **fields)

    # -- what is remembered ----------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write a checkpoint; where that is done beside the training, it counts after the next round only."""
        self._commit()
        with self.report.during("checkpointing"):
            self.checkpoints.begin(self._version, self.trainer.state_dict())
        if not self.checkpoints.beside:
            self._commit()

    def _commit(self) -> None:
        """Make what was written count, the round's record first; then Redis may forget those rounds."""
        version = self.checkpoints.begun
        if version is None:
            return
        with self.report.during("checkpointing"):
            self.checkpoints.commit(before_commit=self._record)
            self._saved_version = version
            self._supply.release(version)

    def _record(self) -> None:
        """Write the last trained round's metrics and answers, once its version is published and evaluated."""
        trained, self._unrecorded = self._unrecorded, None
        evaluated = self._evaluated()
        if trained is None:
            if evaluated:  # the round was recorded before an interruption, its version's evaluation was not
                self.records.add_evaluations(self._version - 1, evaluated)
            return
        with self.report.during("publishing"):
            trained.publication.result()
        with self.report.during("checkpointing"):
            metrics = trained.metrics(
                epoch=self.curriculum.epoch_at(trained.round),
                pause_ms=self.report.generator_pause_ms(),
                tasks_reissued=self.collector.reissued,
                peak_memory_bytes=take_peak_bytes(self.model.device),
                evaluations=evaluated,
            )
            self.records.write(metrics, trained.answers(self.curriculum.prompts_of(trained.round), self.text_of))

    def _evaluate(self, publication: Future[Publication]) -> None:
        """Start the evaluation of `_version`, which is being published, if one is due and not done yet."""
        if self.evaluations is not None and self.evaluations.is_due(self._version):
            self._evaluation = self.evaluations.start(self._version, publication)

    def _evaluated(self) -> Evaluated:
        """What the evaluation under way has found, once it has; called before another version is published."""
        evaluation, self._evaluation = self._evaluation, None
        if evaluation is None:
            return ()
        try:
            with self.report.during("evaluating"):
                return evaluation.result()
        except Interrupted:
            return ()  # the run stops; it is taken up again with the run

    # -- where it begins, and begins again -------------------------------------------------------------------------

    def _resume(self, resumed: Checkpoint | None) -> None:
        """Take up the checkpoint, publish its version (again), and issue the rounds that it admits."""
        if resumed is not None:
            self.trainer.load_state_dict(resumed.tensors)
            self._version = self._saved_version = resumed.weight_version
            self._steps = self.trainer.steps
            log.info("resuming", weight_version=self._version, rounds_total=self.curriculum.rounds_total)
        self.records.cut_back(self._version)
        self.report.update(weight_version=self._version)
        if self._must_take_back(self.publisher.newest()):
            self.publisher.take_back(after=self._version)
        self.publisher.on_published = lambda version: None  # the first rounds are issued here, in their order
        with self.report.during("publishing"):
            publication = self._publish()
            publication.result()
        if self.evaluations is not None and not self.evaluations.is_done(self._version):
            self._evaluate(publication)
        if self.training.data == "online":
            self._let_generators_follow()
        self._supply.begin(self._version)
        self.publisher.on_published = self._supply.published

    def _let_generators_follow(self) -> None:
        """Wait while generators serve versions that were taken back: what they sample would be refused.

        One that does not follow in time is left to that.
        """
        give_up_at = time.monotonic() + self.deadlines.weights_s
        while self.publisher.newest() == self._version and self.report.has_generator_above(self._version):
            if self._stopping.wait(PAUSE_CHECK_S) or time.monotonic() >= give_up_at:
                log.warning("generators_not_followed", weight_version=self._version)
                return

    def _must_take_back(self, newest: int | None) -> bool:
        """Whether versions were published after the checkpoint that may not stay while the run catches up with them.

        They may when all rollouts that made them are still there: then nothing is sampled anew, and the same bytes are
        published again. Else the rounds in between would be sampled from their own future.
        """
        rounds = range(self._version, min(newest or 0, self.curriculum.rounds_total))
        if self.evaluations is not None and any(map(self.evaluations.is_due, rounds)):
            return True  # an evaluation needs its version to be the newest
        return not all(self.collector.has(self.curriculum.tasks_of(round_)) for round_ in rounds)
