"""The loop, read from top to bottom: collect, train, publish, remember.

    for every round r:
        collect exactly round r's rollouts, in task order
        take `steps_per_round` optimizer steps on them
        publish version r + 1, which admits the tasks of round r + 1 + max_staleness
        write a checkpoint, then release from Redis what it contains
        handle what people request: a checkpoint, a rollback, a pause, a stop

Queues, files and threads live in the parts that `learner.build` puts together.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import structlog
from pydantic import JsonValue

from learner.data.curriculum import Curriculum
from learner.evaluation.during import Evaluated, Evaluations
from learner.grading.signals import JudgedAnswer, SignalWorker, vote_shares
from learner.monitoring.collapse import CollapseMonitor
from learner.monitoring.decline import DeclineMonitor
from learner.monitoring.heartbeat import LEARNER_ID, HeartbeatReporter
from learner.monitoring.records import Records, TextOf, TrainedRound
from learner.monitoring.token_record import PiecesOf
from learner.outcome import Outcome
from learner.publisher import Publication, Publisher, contents_of_model
from learner.repair import DamageReports, StoreRepair
from learner.rollouts.collector import Collector, Interrupted
from learner.rollouts.rollout_source import RolloutSource
from learner.training.batch_sharding import TrainingSample
from learner.training.checkpoint import Checkpoint, Checkpoints
from learner.training.peak_memory import take_peak_bytes
from learner.training.trainer import Trainer
from services.contracts import Rollout, RoundMetrics
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
    """One learner's run over its parts. Leaving the `with` block closes them."""

    curriculum: Curriculum
    collector: Collector
    source: RolloutSource
    trainer: Trainer
    publisher: Publisher
    checkpoints: Checkpoints
    records: Records
    control: Control
    events: EventLog
    reporter: HeartbeatReporter
    text_of: TextOf
    pieces_of: PiecesOf
    resumed: Checkpoint | None = None
    """Where the run goes on; None: at its beginning."""
    checkpoint_every: int = 1
    """Rounds."""
    checkpoint_every_s: float = 0.0
    """Least time between two checkpoints."""
    canary_prompts: int = 0
    """Canaries that every version carries."""
    follow_deadline_s: float = 600.0
    """How long generators may take to go back to a version after later ones were retracted."""
    signals: SignalWorker | None = None
    """Set when answers to the same prompt are compared: for an algorithm's signals, or to see whether they agree."""
    monitor: CollapseMonitor | None = None
    """Set when the model's health is measured."""
    decline: DeclineMonitor | None = None
    """Set when evaluations are watched for a fall."""
    on_collapse: Literal["warn", "pause", "rollback", "stop"] = "warn"
    keep_best: Callable[[int], None] | None = None
    """Keeps a version, which is in the store, as the best so far."""
    evaluations: Evaluations | None = None
    """Set when versions are to be evaluated."""
    repair: StoreRepair | None = None
    """Looks after the published versions, where they are kept."""
    reports: DamageReports | None = None
    traces: Traces | None = None
    """Set when a collector of traces is named."""
    _evaluation: Future[Evaluated] | None = None
    """Of `_version`, until its results are recorded."""
    _version: int = 0
    _saved_version: int = 0
    _saved_at: float = -math.inf
    """On the monotonic clock: when the last checkpoint was begun."""
    _steps: int = 0
    """Optimizer steps that `_version` is made of; when the trainer has taken more, its weights are of no version."""
    _collapsed: bool = False
    """Whether the run ends after this round because of what its health or its evaluations show."""
    _untrained: Evaluated = ()
    """Of version 0, until round 0 is recorded."""
    _unrecorded: TrainedRound | None = None
    _round_began: float = 0.0
    """On the monotonic clock: when the round before had been trained."""
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.collector.start()
        if self.repair is not None:
            self.reports = DamageReports(self.events, self._repair_reported, self.collector.fail)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.reports is not None:
            self.reports.close()
        self.publisher.close()
        self.collector.stop()
        self.records.close()
        for part in (self.traces, self.signals, self.evaluations):
            if part is not None:
                part.close()

    def run(self) -> Outcome:
        """Train to the last round, or until asked to stop before it."""
        if self.repair is not None:
            self.publisher.call(partial(self.repair.at_start, resumed=self.resumed is not None)).result()
        self._begin_from(self.resumed)
        if self.reports is not None:
            self.reports.start()
        self._round_began = time.monotonic()
        self.reporter.enter("training")  # but for what is accounted as a wait or as something else
        self._run_rounds()
        outcome = Outcome.STOPPED
        if self._is_over():
            outcome = Outcome.FINISHED
            self._report_lost_records()  # a learner that is asked to stop has no time for it
        elif self._stopping.is_set():
            outcome = Outcome.INTERRUPTED
        log.info(outcome.value, weight_version=self._version)
        if self.decline is not None and (peak := self.decline.peak) is not None:
            self.events.append(LEARNER_ID, "peak", weight_version=peak.version, pass_at_1=round(peak.pass_at_1, 4))
            log.info("pass_at_1_peaked", weight_version=peak.version, pass_at_1=round(peak.pass_at_1, 4))
        return outcome

    def _run_rounds(self) -> None:
        try:
            while self._may_go_on():
                self._train(self._version)
                if self._handle_requests().stop_after_round or self._collapsed:
                    break
        except Interrupted:
            log.info("interrupted", round=self._version)
        if self._version not in (self._saved_version, self.checkpoints.begun) and self.trainer.steps == self._steps:
            self._save()
        self._commit()
        self._record()

    def stop(self) -> None:
        """Stop at the next safe point: at once while waiting, after the round while training."""
        self._stopping.set()
        self.collector.interrupt()
        if self.evaluations is not None:
            self.evaluations.interrupt()

    # -- the steps of a round --------------------------------------------------------------------------------------

    def _train(self, round_: int) -> None:
        """Train the round as its rollouts arrive, then hand its version to the publisher."""
        waited_before = self.reporter.seconds_in("waiting_for_rollouts")
        received: list[Rollout] = []
        judged: list[JudgedAnswer] = []
        stats = self.trainer.train_round(self._samples(round_, received, judged))
        if self.traces is not None:
            self.traces.round_trained(round_)
        health, signs = (None, []) if self.monitor is None else self.monitor.examine(self.trainer.model, received)
        if signs:
            self._handle_collapse(signs)
        now = time.monotonic()
        round_s, self._round_began = now - self._round_began, now
        wait_s = self.reporter.seconds_in("waiting_for_rollouts") - waited_before
        self.reporter.count_tokens(stats.prompt_tokens + stats.response_tokens)
        self._wait_for_evaluation()
        self._record()
        self._commit()
        self.curriculum.note(round_, vote_shares(received, judged))
        self._version, self._steps = round_ + 1, self.trainer.steps
        self.reporter.update(weight_version=self._version)
        publication = self._publish(self.source.admit)
        publication.add_done_callback(self._fail_if_unpublished)
        self._evaluate(publication)
        self._unrecorded = TrainedRound(round_, received, stats, judged, health, wait_s, round_s, publication)
        log.info(
            "round_trained",
            round=round_,
            loss=round(stats.loss, 4),
            response_tokens=stats.response_tokens,
            train_s=round(stats.seconds, 2),
            wait_s=round(wait_s, 2),
        )

    def _samples(self, round_: int, received: list[Rollout], judged: list[JudgedAnswer]) -> Iterator[TrainingSample]:
        """What the trainer takes, each as soon as it is here; the two lists keep all of it."""
        rollouts = self.source.rollouts(round_)
        samples: Iterator[tuple[Rollout, JudgedAnswer | None]] = zip(rollouts, repeat(None))
        if self.signals is not None:
            references = [prompt.answer or "" for prompt in self.curriculum.prompts_of(round_)]
            samples = self.signals.in_order(rollouts, references, self.text_of)
        for rollout, answer in samples:
            received.append(rollout)
            if answer is not None:
                judged.append(answer)
            if self.traces is not None:
                self.traces.rollout_taken(rollout, self.collector.completed_at(rollout))
            signal = None if answer is None else answer.signal
            yield TrainingSample(rollout) if signal is None else TrainingSample(rollout, signal.weight)

    def _publish(self, published: Callable[[int], None] | None) -> Future[Publication]:
        """Hand the weights, as they are now, to the publisher as `_version`; `published` is called with it."""
        with self.reporter.during("publishing"):
            contents = contents_of_model(self.trainer.model, self._version, self.canary_prompts)
            return self.publisher.submit(self._version, contents, published)

    def _repair_reported(self) -> bool:
        assert self.repair is not None
        return self.publisher.call(self.repair.while_training).result()

    def _fail_if_unpublished(self, publication: Future[Publication]) -> None:
        """A version that cannot be published admits no tasks: nobody must wait for their rollouts."""
        if not publication.cancelled() and (error := publication.exception()) is not None:
            self.collector.fail(error)

    def _handle_collapse(self, signs: list[str], best: int | None = None) -> None:
        """Warn of a model that collapses; as the settings say the run goes back to a healthy version and pauses, or
        ends. `best`: the version that the signs compare with, where they compare with one.

        It pauses after going back, too: what made the model collapse is still there, and a person should look first.
        """
        assert self.monitor is not None
        paused, back_to = self.on_collapse in ("pause", "rollback"), None
        if self.on_collapse == "rollback":
            versions = self.checkpoints.versions()
            back_to = self.monitor.newest_healthy(one for one in versions if best is None or one <= best)
        found: dict[str, JsonValue] = {"signs": "; ".join(signs), "paused": paused, "rollback_to": back_to}
        if self.on_collapse == "stop":
            found |= {"stopped": True, "best_version": self._best_version()}
        log.warning("collapse", **found)
        self.events.append(LEARNER_ID, "collapse", **found)
        self._collapsed = self.on_collapse == "stop"
        if paused:
            self.control.set_paused(True)
        if back_to is not None:
            self.control.request_rollback(back_to)

    # -- what people request ---------------------------------------------------------------------------------------

    def _may_go_on(self) -> bool:
        """False once asked to stop and after the last round; waits as long as the run is paused."""
        while self._handle_requests().paused and not (self._stopping.is_set() or self._is_over()):
            with self.reporter.during("paused"):
                self._stopping.wait(PAUSE_CHECK_S)
        return not (self._stopping.is_set() or self._is_over())

    def _is_over(self) -> bool:
        return self._version >= self.curriculum.rounds_total  # more: a person has lowered the number since

    def _handle_requests(self) -> ControlState:
        """Between two rounds: roll back and write a checkpoint where that is requested or due. The requests as read."""
        requests = self.control.state()
        if requests.rollback_to is not None:
            self._roll_back(requests.rollback_to)
            self.control.rollback_done(requests.rollback_to)
        # A checkpoint records the round, evaluation included: it waits a round rather than hold up training.
        evaluating = self._evaluation is not None and not self._evaluation.done()
        unsaved = self._version - self._saved_version
        if not evaluating and unsaved and (requests.checkpoint or self._is_due(unsaved)):
            if self.checkpoints.begun != self._version:
                self._save()
            if requests.checkpoint or requests.paused:  # somebody waits for it, or there is nothing else to do
                self._commit()
        if not evaluating and requests.checkpoint:
            self._report_done("checkpointed", weight_version=self._version)
            self.control.checkpoint_done()
        return requests

    def _roll_back(self, version: int) -> None:
        """Go back to the checkpoint of `version`, then go on as a resumed learner does.

        What came later is given up: checkpoints, versions, records, and the tasks and rollouts of its rounds, which
        are sampled anew. The request stands until all of that is done, so a learner that dies over it does it again.
        """
        self._record()  # nothing is being published, evaluated or recorded from here on
        self._commit()
        before = self._version
        with self.reporter.during("rolling_back"):
            try:
                checkpoint = self.checkpoints.go_back(version)
            except CheckpointError as error:
                self._report_done("not_rolled_back", weight_version=version, reason=f"{error.message}; {error.hint}")
                return
            self.source.discard_from(version)
            self.publisher.retract_after(version)
        self._begin_from(checkpoint)
        self._round_began = time.monotonic()
        self._report_done("rolled_back", weight_version=version, before=before)

    def _is_due(self, unsaved: int) -> bool:
        """Whether enough rounds and enough time have passed since the last checkpoint."""
        return unsaved >= self.checkpoint_every and time.monotonic() - self._saved_at >= self.checkpoint_every_s

    def _report_done(self, action: str, **fields: JsonValue) -> None:
        """Tell people, in log and events, what became of a request."""
        log.info(action, **fields)
        self.events.append(LEARNER_ID, "control", action=action, **fields)

    # -- what is remembered ----------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write a checkpoint; one that is written while training goes on counts after the next round only."""
        self._commit()
        self._saved_at = time.monotonic()
        with self.reporter.during("checkpointing"):
            self.checkpoints.begin(self._version, self.trainer.state_dict(), self.curriculum.state())
        if not self.checkpoints.async_write:
            self._commit()

    def _commit(self) -> None:
        """Make what was written count, the round's record first; then Redis may forget those rounds."""
        version = self.checkpoints.begun
        if version is None:
            return
        with self.reporter.during("checkpointing"):
            self.checkpoints.commit(before_commit=self._record)
            self._saved_version = version
            self.source.release(version)

    def _record(self) -> None:
        """Write the last trained round's metrics and answers, once its version is published and evaluated."""
        trained, self._unrecorded = self._unrecorded, None
        evaluated = self._evaluated()
        if trained is None:
            if self._version == 0:
                self._untrained = evaluated or self._untrained
            elif evaluated:  # the round was recorded before an interruption, its version's evaluation was not
                self.records.add_evaluations(self._version - 1, evaluated)
            return
        evaluated, self._untrained = self._untrained + evaluated, ()
        with self.reporter.during("publishing"):
            trained.publication.result()
        with self.reporter.during("checkpointing"):
            metrics = trained.metrics(
                epoch=self.curriculum.epoch_at(trained.round),
                pause_ms=self.reporter.generator_pause_ms(),
                tasks_reissued=self.collector.reissued,
                peak_memory_bytes=take_peak_bytes(self.trainer.model.device),
                evaluations=evaluated,
            )
            prompts = self.curriculum.prompts_of(trained.round)
            self.records.write(metrics, trained.answers(prompts, self.text_of, self.pieces_of))
        self._examine_evaluations(metrics)

    def _examine_evaluations(self, metrics: RoundMetrics) -> None:
        """Keep the version up to which pass@1 was highest, where that is wanted, and say when it has fallen since."""
        if self.decline is None:
            return
        before = self._best_version()
        signs = self.decline.examine(metrics)
        best = self._best_version()
        if self.keep_best is not None and best is not None and best != before:
            self.publisher.call(partial(self.keep_best, best))
        if signs:
            self._handle_collapse(signs, best)

    def _best_version(self) -> int | None:
        return None if self.decline is None or self.decline.peak is None else self.decline.peak.version

    def _evaluate(self, publication: Future[Publication]) -> None:
        """Start the evaluation of `_version`, which is being published, if one is due and not done yet."""
        if self.evaluations is not None and self.evaluations.is_due(self._version):
            self._evaluation = self.evaluations.start(self._version, publication)

    def _wait_for_evaluation(self) -> None:
        """Raises Interrupted when the run is to stop: what was trained meanwhile is given up.

        Once a later version is published nobody can sample from this one, so its evaluation would never be made.
        """
        if self._evaluation is not None:
            with self.reporter.during("evaluating"):
                self._evaluation.result()

    def _evaluated(self) -> Evaluated:
        """What the running evaluation has found, once it has; called before another version is published."""
        evaluation, self._evaluation = self._evaluation, None
        if evaluation is None:
            return ()
        try:
            with self.reporter.during("evaluating"):
                return evaluation.result()
        except Interrupted:
            return ()  # the run stops; the evaluation is done when it goes on

    # -- where it begins, and begins again -------------------------------------------------------------------------

    def _begin_from(self, checkpoint: Checkpoint | None) -> None:
        """Load the checkpoint, publish its version (again), and issue the rounds that it admits."""
        if checkpoint is not None:
            self.trainer.load_state_dict(checkpoint.tensors)
            self.curriculum.load_state(checkpoint.curriculum)
            self._version = self._saved_version = checkpoint.weight_version
            self._steps = self.trainer.steps
            log.info("resuming", weight_version=self._version, rounds_total=self.curriculum.rounds_total)
            if self._version > self.curriculum.rounds_total:
                log.warning(
                    "nothing_left_to_train", rounds_done=self._version, rounds_total=self.curriculum.rounds_total
                )
        self.records.cut_back(self._version)
        self._report_lost_records()
        self.reporter.update(weight_version=self._version)
        if self._must_retract(self.publisher.newest()):
            self.publisher.retract_after(self._version)
        publication = self._publish(None)  # the first rounds are issued below, in their order
        with self.reporter.during("publishing"):
            digest = publication.result().manifest.digest
        # Of version 0, which has no round to be recorded with, the results are read again: no answer is sampled twice.
        if self.evaluations is not None and not (self._version and self.evaluations.is_done(self._version, digest)):
            self._evaluate(publication)
        if self.source.follows_versions:
            self._wait_for_generators()
        self.source.begin(self._version)

    def _wait_for_generators(self) -> None:
        """Wait while generators serve versions that were retracted: what they sample would be refused.

        A generator that does not follow in time is not waited for: its rollouts are refused.
        """
        give_up_at = time.monotonic() + self.follow_deadline_s
        while self.publisher.newest() == self._version and self.reporter.has_generator_above(self._version):
            if self._stopping.wait(PAUSE_CHECK_S) or time.monotonic() >= give_up_at:
                log.warning("generators_not_followed", weight_version=self._version)
                return

    def _report_lost_records(self) -> None:
        """Say which records of trained rounds are gone: whoever reads the others must not take them for all."""
        if lost := self.records.lost(self._version):
            log.warning("records_lost", metrics_of=list(lost.metrics), answers_of=list(lost.answers))
            self.events.append(
                LEARNER_ID, "records_lost", metrics_of=list(lost.metrics[:1000]), answers_of=list(lost.answers[:1000])
            )

    def _must_retract(self, newest: int | None) -> bool:
        """Whether versions were published after the checkpoint that may not stay while the run catches up with them.

        They may when all rollouts that made them are still there: then nothing is sampled anew, and the same bytes are
        published again. Else the rounds in between would be sampled from their own future.
        """
        rounds = range(self._version, min(newest or 0, self.curriculum.rounds_total))
        if self.evaluations is not None and any(map(self.evaluations.is_due, rounds)):
            return True  # an evaluation needs its version to be the newest
        return not all(
            self.curriculum.is_planned(round_) and self.collector.has(self.curriculum.tasks_of(round_))
            for round_ in rounds
        )
