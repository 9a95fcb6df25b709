"""Whenever the learner dies or is stopped, it goes on to the very weights and records of a run left in peace."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import redis
import structlog
import torch

from learner.build import build_learner
from learner.config import (
    ANY_VOTE_SHARE,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    HealthConfig,
    LearnerSettings,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
)
from learner.loop import Loop
from learner.monitoring.decline import DeclineMonitor
from learner.monitoring.heartbeat import HeartbeatReporter
from learner.outcome import Outcome
from learner.publisher import Publisher
from learner.training.batch_sharding import TrainingSample
from learner.training.trainer import RoundStats
from services.config import DeadlinesConfig, RunConfig
from services.contracts import Canary, EvaluationMetrics, FileKind, Purpose, RoundMetrics, Task, WeightManifest
from services.errors import FencedError, UnavailableError
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect
from services.streams.events import EventLog
from services.streams.fence import UNFENCED, Fence, take_over
from services.streams.heartbeats import Heartbeats
from services.streams.rollouts import RolloutReader
from services.tensors import Tensors
from services.weights.damage import find_damage
from services.weights.export import export_version
from services.weights.publisher import WeightPublisher
from services.weights.reader import WeightReader
from tests.support import tiny_models
from tests.support.answering import Answering
from tests.support.disk_order import disk_order
from tests.support.round_records import SOUND
from tests.support.stream_builders import last_events, request_checkpoint, request_stop

ROUNDS = 4
PROMPTS = 8
STEPS = 2
PATIENCE_S = 60.0


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


class MergedOnly(WeightPublisher):
    """Sends what changed in the merged weights, whatever is smaller."""

    def publish(
        self,
        version: int,
        tensors: Tensors,
        model_files: Mapping[str, Path] | None = None,
        canaries: Sequence[Canary] = (),
        packed: Tensors | None = None,
    ) -> WeightManifest:
        return super().publish(version, tensors, model_files, canaries)


@dataclass
class Life:
    """One life of the learner of a run."""

    loop: Loop
    client: redis.Redis
    keys: Keys
    url: str

    def go(self, may_answer: Callable[[Task], bool] = lambda task: True) -> Outcome:
        """To the end of this life, with generators that answer."""
        with Answering(self.url, self.keys, may_answer=may_answer):
            return self.loop.run()


@contextmanager
def life(
    folder: RunFolder,
    redis_url: str,
    *,
    max_staleness: int = 0,
    every_rounds: int = 1,
    every_minutes: float = 0.0,
    keep: int = 2,
    text_of: Callable[[object], str] = str,
    async_checkpoints: bool = False,
    lora: LoraConfig | None = None,
    on_collapse: Literal["off", "warn", "pause", "rollback", "stop"] = "off",
    fence: Fence = UNFENCED,
    evaluation: EvaluationConfig | None = None,
    vote_share: tuple[float, float] = ANY_VOTE_SHARE,
    samples: int = 1,
) -> Iterator[Life]:
    """A learner as `learner.build` makes it; leaving the block ends it as it stands, without saving anything."""
    settings = LearnerSettings(
        run=RunConfig(dir=folder.path, seed=1),
        model=ModelConfig(path=str(folder.path.parent / "model")),
        data=DataConfig(path=str(folder.path.parent / "prompts.jsonl"), chat_template="none", vote_share=vote_share),
        sampling=SamplingConfig(rollouts_per_prompt=samples),
        training=tiny_models.training(
            rounds=ROUNDS, prompts_per_round=PROMPTS, steps_per_round=STEPS, max_staleness=max_staleness
        ),
        lora=lora or LoraConfig(),
        checkpoint=CheckpointConfig(every_rounds=every_rounds, every_minutes=every_minutes, keep=keep),
        health=HealthConfig(action=on_collapse),
        evaluation=evaluation or EvaluationConfig(),
        deadlines=DeadlinesConfig(rollouts_s=PATIENCE_S),
    )
    keys = Keys(folder.run_id)
    with connect(redis_url) as client:
        reporter = HeartbeatReporter(Heartbeats(client, keys, fence), device="cpu", every_s=60)
        reporter.start()
        try:
            with build_learner(
                folder, settings, client, reporter, fence=fence, text_of=text_of, async_checkpoints=async_checkpoints
            ) as loop:
                yield Life(loop, client, keys, redis_url)
        finally:
            reporter.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    rows = [{"question": f"{number + 3} 5"} for number in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny_models.save_with_words(folder / "model", dtype=torch.bfloat16)


@pytest.fixture
def folder(model: Path) -> Iterator[RunFolder]:
    number = len(list(model.parent.iterdir()))
    yield RunFolder(model.parent / f"run-{number}").create()


@pytest.fixture(scope="module")
def in_peace(model: Path, redis_server_url: str) -> dict[int, str]:
    """Digests of all versions of a run that nobody disturbed."""
    folder = RunFolder(model.parent / "in-peace").create()
    with life(folder, redis_server_url) as learner:
        assert learner.go() is Outcome.FINISHED
    return digests(folder)


def digests(folder: RunFolder) -> dict[int, str]:
    store = WeightReader(folder.weights, folder.run_id)
    return {version: store.manifest(version).digest for version in store.versions()}


def check(folder: RunFolder, learner: Life, in_peace: dict[int, str]) -> None:
    """The run is the one it would have been, and Redis holds nothing of it any more."""
    assert digests(folder) == in_peace
    assert len(in_peace) == ROUNDS + 1
    assert [metrics.round for metrics in folder.rounds()] == list(range(ROUNDS))
    assert len(folder.metrics.read_text().splitlines()) == ROUNDS
    assert len(list(folder.rollouts.iterdir())) == ROUNDS
    assert learner.loop.trainer.steps == ROUNDS * STEPS
    assert learner.client.xlen(learner.keys.rollouts) == learner.client.xlen(learner.keys.tasks) == 0


@pytest.mark.parametrize(("max_staleness", "every_rounds"), [(0, 1), (0, 10), (1, 3), (2, 1)])
def test_every_round_is_trained_published_and_recorded(
    max_staleness: int, every_rounds: int, folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    with life(folder, redis_url, max_staleness=max_staleness, every_rounds=every_rounds) as learner:
        assert learner.go() is Outcome.FINISHED
        check(folder, learner, in_peace)


def dying_at(death_at: int | None) -> Callable[[object], str]:
    """Makes a text of each answer as it is recorded, until the learner dies over that one; None: it lives."""
    answers = itertools.count()

    def text_of(tokens: object) -> str:
        if next(answers) == death_at:
            raise Killed
        return str(tokens)

    return text_of


@pytest.mark.parametrize("every_rounds", [1, 3])
@pytest.mark.parametrize("death_at", [0, PROMPTS, 2 * PROMPTS + 3, 4 * PROMPTS - 1])
@pytest.mark.parametrize("redis_too", [False, True])
def test_a_learner_killed_between_publishing_and_remembering(
    death_at: int, every_rounds: int, redis_too: bool, folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    """Its last version is out, its checkpoint is older: it trains the same again, and publishes the same."""
    drawn: Counter[str] = Counter()

    def draw(task: Task) -> bool:
        drawn[task.task_id] += 1
        return True

    with life(folder, redis_url, every_rounds=every_rounds, text_of=dying_at(death_at)) as learner:
        with pytest.raises(Killed):
            learner.go(may_answer=draw)
        published = learner.loop.publisher.newest()
        assert published is not None
        assert published > learner.loop._saved_version
        held = {rollout.task_id for _, rollout in RolloutReader(learner.client, learner.keys).read(0)}
        for round_ in range(learner.loop._saved_version, published):
            assert {task.task_id for task in learner.loop.curriculum.tasks_of(round_)} <= held, "still needed"
    if redis_too:  # only now: the dead issue nothing again
        with connect(redis_url) as client:
            client.flushall()
    with life(folder, redis_url, every_rounds=every_rounds) as learner:
        assert learner.go(may_answer=draw) is Outcome.FINISHED
        check(folder, learner, in_peace)
    if not redis_too:
        assert set(drawn.values()) == {1}, "nothing that was sampled is sampled again"


@pytest.mark.parametrize("async_checkpoints", [False, True])
def test_rollouts_leave_redis_only_when_the_checkpoint_that_contains_them_is_durable(
    async_checkpoints: bool, folder: RunFolder, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        disk_order(monkeypatch) as order,
        life(folder, redis_url, async_checkpoints=async_checkpoints, max_staleness=1) as learner,
    ):
        assert learner.go() is Outcome.FINISHED
    assert order.finished() == []
    at_redis = f"redis/{PROMPTS} rollouts"
    counted = [
        "release" if path == at_redis else Path(path).name
        for verb, path in order.steps
        if (verb == "name" and Path(path).parent == folder.checkpoints) or (verb == "delete" and path == at_redis)
    ]
    assert counted == [step for version in range(1, ROUNDS + 1) for step in (f"v{version:06d}", "release")]


@pytest.mark.parametrize("death_at", [0, 2 * PROMPTS + 3, 4 * PROMPTS - 1, None])
def test_checkpoints_written_while_training_goes_on_lag_a_round_and_lose_nothing(
    death_at: int | None, folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    with life(folder, redis_url, text_of=dying_at(death_at), async_checkpoints=True) as learner:
        if death_at is None:
            assert learner.go() is Outcome.FINISHED
        else:
            with pytest.raises(Killed):
                learner.go()
    with life(folder, redis_url, async_checkpoints=True) as learner:
        assert learner.go() is Outcome.FINISHED
        assert digests(folder) == in_peace
        assert [metrics.round for metrics in folder.rounds()] == list(range(ROUNDS))
        assert all(metrics.model_dump()["peak_memory_bytes"] > 0 for metrics in folder.rounds())


def test_versions_of_the_future_are_retracted_when_rounds_must_be_sampled_anew(
    folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    with life(folder, redis_url, every_rounds=10) as learner:
        with Answering(redis_url, learner.keys, may_answer=lambda task: task.round < 3), ThreadPoolExecutor() as pool:
            running = pool.submit(learner.loop.run)
            until(lambda: learner.loop.publisher.newest() == 3)
            learner.loop.stop()
            assert running.result(PATIENCE_S) is Outcome.INTERRUPTED
        assert learner.loop._saved_version == 3
    for path in folder.checkpoints.iterdir():
        path.rename(folder.path / "lost")  # the disk, or a fallback to an older one
    with life(folder, redis_url) as learner:
        assert learner.loop.resumed is None
        learner.client.delete(learner.keys.tasks, learner.keys.open)  # their leases are still held by the dead
        newest: list[int | None] = []

        def look(task: Task) -> bool:
            newest.append(learner.loop.publisher.newest())
            return True

        assert learner.go(may_answer=look) is Outcome.FINISHED
        assert newest[0] == 0, "nothing is sampled at version 3 for round 0"
        check(folder, learner, in_peace)


def test_a_half_trained_round_is_not_remembered(folder: RunFolder, redis_url: str, in_peace: dict[int, str]) -> None:
    """Stopped between the two steps of round 1: its weights are of no version, so it is done again from version 1."""
    half = PROMPTS // STEPS

    def withheld(task: Task) -> bool:
        return task.round == 0 or (task.round == 1 and task.position <= half)

    with life(folder, redis_url, every_rounds=10) as learner:
        with Answering(redis_url, learner.keys, may_answer=withheld), ThreadPoolExecutor() as pool:
            running = pool.submit(learner.loop.run)
            until(lambda: learner.loop.trainer.steps == STEPS + 1)
            learner.loop.stop()
            assert running.result(PATIENCE_S) is Outcome.INTERRUPTED
        assert not list(folder.checkpoints.iterdir())
    with life(folder, redis_url) as learner:
        learner.client.delete(learner.keys.tasks, learner.keys.open)  # their leases are still held by the dead
        assert learner.go() is Outcome.FINISHED
        check(folder, learner, in_peace)


def test_a_learner_stopped_while_it_waits_remembers_all_it_has(
    folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    with (
        life(folder, redis_url, every_rounds=10) as learner,
        Answering(redis_url, learner.keys, may_answer=lambda task: task.round < 2),
        ThreadPoolExecutor() as pool,
    ):
        running = pool.submit(learner.loop.run)
        until(lambda: learner.loop.publisher.newest() == 2)
        learner.loop.stop()
        assert running.result(PATIENCE_S) is Outcome.INTERRUPTED
    with life(folder, redis_url) as learner:
        assert learner.loop.resumed is not None
        assert learner.loop.resumed.weight_version == 2
        learner.client.delete(learner.keys.tasks, learner.keys.open)
        assert learner.go() is Outcome.FINISHED
        check(folder, learner, in_peace)


def test_a_learner_stopped_while_version_0_is_evaluated_does_so_when_it_goes_on(
    folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    """Round 0 is trained by then, and given up: once version 1 is there, no generator can sample from version 0."""
    problems = folder.path.parent / "held-out.jsonl"
    problems.write_text('{"question": "9 1", "answer": "31"}\n')
    evaluation = EvaluationConfig(every_rounds=2, benchmarks=(f"held={problems}",), samples=2)

    def training(task: Task) -> bool:
        return task.purpose is Purpose.TRAINING

    with (
        life(folder, redis_url, evaluation=evaluation) as learner,
        Answering(redis_url, learner.keys, may_answer=training),
        ThreadPoolExecutor() as pool,
    ):
        running = pool.submit(learner.loop.run)
        until(lambda: learner.loop.trainer.steps == STEPS)
        learner.loop.stop()
        assert running.result(PATIENCE_S) is Outcome.INTERRUPTED
    assert list(folder.rounds()) == []
    with life(folder, redis_url, evaluation=evaluation) as learner:
        learner.client.delete(learner.keys.tasks, learner.keys.open)  # the evaluation's are still leased
        assert learner.go() is Outcome.FINISHED
        check(folder, learner, in_peace)
    evaluated = [[found.weight_version for found in line.evaluations] for line in folder.rounds()]
    assert evaluated == [[0], [2], [], [4]]


def test_a_requested_stop_comes_after_the_round(folder: RunFolder, redis_url: str, in_peace: dict[int, str]) -> None:
    with life(folder, redis_url, every_rounds=10) as learner:
        request_stop(learner.client, learner.keys, True)
        assert learner.go() is Outcome.STOPPED
        request_stop(learner.client, learner.keys, False)
    assert [metrics.round for metrics in folder.rounds()] == [0]
    with life(folder, redis_url) as learner:
        assert learner.go() is Outcome.FINISHED
        check(folder, learner, in_peace)


def answers_of(learner: Life) -> list[dict[str, object]]:
    """What the learner said of the requests, oldest first."""
    return [event.fields for event in last_events(learner.client, learner.keys) if event.kind == "control"]


def test_checkpoints_have_their_least_distance_in_time_and_the_last_round_is_always_saved(
    folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    with life(folder, redis_url, every_minutes=60, keep=99) as learner:
        assert learner.go() is Outcome.FINISHED
        check(folder, learner, in_peace)
    assert folder.checkpointed() == [1, ROUNDS]


def test_a_checkpoint_is_written_when_somebody_asks(
    folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    found: list[list[int]] = []

    def ask(task: Task) -> bool:
        if task.round == 1 and task.position == 0:
            request_checkpoint(learner.client, learner.keys)
        if task.round == 3 and task.position == 0:
            found.append(folder.checkpointed())
        return True

    with life(folder, redis_url, every_rounds=10) as learner:
        assert learner.go(may_answer=ask) is Outcome.FINISHED
        check(folder, learner, in_peace)
        assert found == [[2]]
        assert answers_of(learner) == [{"action": "checkpointed", "weight_version": 2}]
        assert learner.loop.control.state().checkpoint is False


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_run_that_was_rolled_back_draws_anew_and_becomes_the_run_it_would_have_been(
    max_staleness: int, folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    drawn: list[int] = []
    asked = threading.Event()

    def draw(task: Task) -> bool:
        drawn.append(task.round)
        return True

    def ask(tokens: object) -> str:
        if learner.loop._version == 3 and not asked.is_set():
            asked.set()
            learner.loop.control.request_rollback(1)
        return str(tokens)

    with life(folder, redis_url, max_staleness=max_staleness, keep=3, text_of=ask) as learner:
        assert learner.go(may_answer=draw) is Outcome.FINISHED
        check(folder, learner, in_peace)
        (answer,) = answers_of(learner)
        assert (answer["action"], answer["weight_version"]) == ("rolled_back", 1)
        assert learner.loop.control.state().rollback_to is None
    assert drawn.count(0) == PROMPTS
    assert drawn.count(1) == 2 * PROMPTS, "what was trained on is not trained on again"


def test_a_run_that_sends_adapters_is_the_run_that_sends_merged_weights(
    model: Path, folder: RunFolder, redis_url: str
) -> None:
    """Through a death between publishing and remembering, and a rollback."""
    merged = RunFolder(folder.path.with_name(f"{folder.path.name}-merged")).create()
    with life(merged, redis_url, lora=LoraConfig(rank=2)) as learner:
        events = EventLog(learner.client, learner.keys)
        learner.loop.publisher = Publisher(MergedOnly(merged.weights, merged.run_id), events)
        assert learner.go() is Outcome.FINISHED
    texts = 0

    def disturb(tokens: object) -> str:
        nonlocal texts
        texts += 1
        if texts == 2 * PROMPTS + 3:
            raise Killed
        if texts == 4 * PROMPTS:
            learner.loop.control.request_rollback(2)
        return str(tokens)

    adapters = LoraConfig(rank=2)
    with life(folder, redis_url, keep=3, text_of=disturb, lora=adapters) as learner, pytest.raises(Killed):
        learner.go()
    with life(folder, redis_url, keep=3, text_of=disturb, lora=adapters) as learner:
        assert learner.go() is Outcome.FINISHED
        check(folder, learner, digests(merged))
        assert [answer["action"] for answer in answers_of(learner)] == ["rolled_back"]
    store = WeightReader(folder.weights, folder.run_id)
    kinds = [{entry.kind for entry in store.manifest(version).files} for version in range(1, ROUNDS + 1)]
    assert kinds[0] == {FileKind.ADAPTERS}, "each life chooses anew, the first one these"
    for each in (folder, merged):
        export_version(each, each.path / "exported")
    exported = [each.path / "exported" / "model.safetensors" for each in (folder, merged)]
    assert exported[0].read_bytes() == exported[1].read_bytes()


def test_a_rollback_that_was_cut_short_is_done_again(
    folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    """The learner died when later checkpoints were gone, and everything else was as before."""
    with life(folder, redis_url, every_rounds=1) as learner:
        request_stop(learner.client, learner.keys, True)
        assert learner.go() is Outcome.STOPPED
        request_stop(learner.client, learner.keys, False)
    with life(folder, redis_url, every_rounds=1) as learner:
        with Answering(redis_url, learner.keys, may_answer=lambda task: task.round < 3), ThreadPoolExecutor() as pool:
            running = pool.submit(learner.loop.run)
            until(lambda: learner.loop.publisher.newest() == 3)
            learner.loop.stop()
            assert running.result(PATIENCE_S) is Outcome.INTERRUPTED
        learner.loop.checkpoints.go_back(2)
        learner.loop.control.request_rollback(2)
        learner.client.delete(learner.keys.tasks, learner.keys.open)  # their leases are still held by the dead
    newest: list[int | None] = []

    def look(task: Task) -> bool:
        newest.append(learner.loop.publisher.newest())
        return True

    with life(folder, redis_url) as learner:
        assert learner.go(may_answer=look) is Outcome.FINISHED
        assert newest[0] == 2
        check(folder, learner, in_peace)
        assert answers_of(learner)[-1] == {"action": "rolled_back", "weight_version": 2, "before": 2}


def test_a_rollback_to_a_version_without_a_checkpoint_is_refused_and_the_run_goes_on(
    folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    def ask(task: Task) -> bool:
        if task.round == 3 and task.position == 0:
            learner.loop.control.request_rollback(1)
        return True

    with life(folder, redis_url) as learner:
        assert learner.go(may_answer=ask) is Outcome.FINISHED
        check(folder, learner, in_peace)
        (answer,) = answers_of(learner)
        assert answer["action"] == "not_rolled_back"
        assert answer["reason"] == "there is no checkpoint of version 1; there are: v000003, v000002"


def test_a_paused_run_goes_back_at_once_and_stays_paused(folder: RunFolder, redis_url: str) -> None:
    def ask(tokens: object) -> str:
        if learner.loop._version == 2:
            learner.loop.control.set_paused(True)
        return str(tokens)

    with (
        life(folder, redis_url, text_of=ask) as learner,
        Answering(redis_url, learner.keys),
        ThreadPoolExecutor() as pool,
    ):
        control = learner.loop.control
        running = pool.submit(learner.loop.run)
        until(lambda: folder.checkpointed() == [1, 2])
        control.request_rollback(1)
        until(lambda: control.state().rollback_to is None)
        assert learner.loop.publisher.newest() == 1
        assert [metrics.round for metrics in folder.rounds()] == [0]
        assert control.state().paused
        learner.loop.stop()
        assert running.result(PATIENCE_S) is Outcome.INTERRUPTED


@pytest.mark.parametrize("action", ["warn", "pause", "rollback"])
def test_a_run_that_collapses_warns_pauses_or_goes_back_to_its_newest_healthy_version(
    action: Literal["warn", "pause", "rollback"], folder: RunFolder, redis_url: str
) -> None:
    with (
        life(folder, redis_url) as learner,
        Answering(redis_url, learner.keys, may_answer=lambda task: task.round < 3),
        ThreadPoolExecutor() as pool,
    ):
        running = pool.submit(learner.loop.run)
        until(lambda: folder.checkpointed() == [2, 3])
        learner.loop.stop()
        assert running.result(PATIENCE_S) is Outcome.INTERRUPTED
        learner.client.delete(learner.keys.tasks, learner.keys.open)
    sound = [metrics.model_copy(update=asdict(SOUND)) for metrics in folder.rounds()]
    folder.metrics.write_text("".join(f"{metrics.as_line()}\n" for metrics in sound))
    with (
        life(folder, redis_url, on_collapse=action) as learner,
        Answering(redis_url, learner.keys),
        ThreadPoolExecutor() as pool,
    ):
        control = learner.loop.control
        running = pool.submit(learner.loop.run)
        if action == "warn":
            assert running.result(PATIENCE_S) is Outcome.FINISHED
        else:
            until(lambda: control.state().paused and control.state().rollback_to is None)
            if action == "rollback":
                until(lambda: bool(answers_of(learner)))
            learner.loop.stop()
            running.result(PATIENCE_S)
        (collapse,) = [event.fields for event in last_events(learner.client, learner.keys) if event.kind == "collapse"]
        assert "response length" in str(collapse["signs"])
        assert collapse["rollback_to"] == (3 if action == "rollback" else None)
        assert control.state().paused is (action != "warn")
        if action == "rollback":
            assert answers_of(learner) == [{"action": "rolled_back", "weight_version": 3, "before": 4}]
            assert (learner.loop.publisher.newest(), folder.checkpointed()) == (3, [2, 3])


def test_prompts_that_are_passed_over_are_the_same_after_a_kill(folder: RunFolder, redis_url: str) -> None:
    """Which prompts come depends on how far answers agreed; the checkpoint holds that, and what was planned."""

    def boxed(tokens: object) -> str:
        return f"\\boxed{{{int(np.asarray(tokens)[0]) % 2}}}"

    def dying(at: int) -> Callable[[object], str]:
        count = itertools.count()

        def text_of(tokens: object) -> str:
            if next(count) == at:
                raise Killed
            return boxed(tokens)

        return text_of

    whole = RunFolder(folder.path.with_name(f"{folder.path.name}-whole")).create()
    gated = partial(life, max_staleness=1, every_rounds=2, vote_share=(0.6, 1.0), samples=2)
    with structlog.testing.capture_logs() as logs, gated(whole, redis_url, text_of=boxed) as learner:
        assert learner.go() is Outcome.FINISHED
        after = learner.loop.curriculum.state()
    assert any(log["event"] == "prompts_passed_over" and log["too_hard"] for log in logs)
    for death_at in (2 * PROMPTS * 2 + 3, 5 * PROMPTS * 2 + 1):  # each answer has a text twice: judged, recorded
        with gated(folder, redis_url, text_of=dying(death_at)) as learner, pytest.raises(Killed):
            learner.go()
    with gated(folder, redis_url, text_of=boxed) as learner:
        assert learner.go() is Outcome.FINISHED
        assert learner.loop.curriculum.state() == after
    assert digests(folder) == digests(whole)
    questions = [
        [json.loads(line)["question"] for _, path in one.rollout_files() for line in path.read_text().splitlines()]
        for one in (whole, folder)
    ]
    assert questions[0] == questions[1]


class MadeProbe(DeclineMonitor):
    """Evaluates every version by a course that is given: pass@1 by version, from version 1 on."""

    def __init__(self, course: Sequence[float]) -> None:
        super().__init__([])
        self._course = course

    def examine(self, metrics: RoundMetrics) -> list[str]:
        value = self._course[metrics.round]
        by_k = {"sums": {1: value, 2: value + 0.1}}
        evaluation = EvaluationMetrics(
            weight_version=metrics.weight_version, temperature=1, samples=32, problems={"sums": 200}, pass_at_k=by_k
        )
        return super().examine(metrics.model_copy(update={"evaluations": (evaluation,)}))


def test_a_run_whose_probe_falls_is_stopped_and_its_best_version_kept(folder: RunFolder, redis_url: str) -> None:
    with life(folder, redis_url, on_collapse="stop") as learner:
        learner.loop.decline = MadeProbe([0.6, 0.7, 0.62, 0.6])
        assert learner.go() is Outcome.STOPPED
        (collapse,) = [event.fields for event in last_events(learner.client, learner.keys) if event.kind == "collapse"]
    assert "points below its peak of 65.0% at version 2" in str(collapse["signs"])
    assert (collapse["stopped"], collapse["best_version"]) == (True, 2)
    assert [path.name for path in folder.best.iterdir()] == ["v000002"]
    export_version(folder, folder.path / "second", 2)
    weights = [path / "model.safetensors" for path in (folder.best / "v000002", folder.path / "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert [metrics.round for metrics in folder.rounds()] == [0, 1, 2], "round 3 is not trained"


def test_a_run_whose_probe_rises_goes_on_to_its_end(folder: RunFolder, redis_url: str) -> None:
    with life(folder, redis_url, on_collapse="stop") as learner:
        learner.loop.decline = MadeProbe([0.6, 0.7, 0.69, 0.71])
        assert learner.go() is Outcome.FINISHED
        kinds = [event.kind for event in last_events(learner.client, learner.keys)]
        (peak,) = [event.fields for event in last_events(learner.client, learner.keys) if event.kind == "peak"]
    assert "collapse" not in kinds
    assert peak == {"weight_version": 4, "pass_at_1": 0.7}
    assert [path.name for path in folder.best.iterdir()] == ["v000004"]


def test_a_checkpoint_that_rots_costs_a_round_and_nothing_else(
    folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    with life(folder, redis_url) as learner:
        assert learner.go() is Outcome.FINISHED
    newest = max(folder.checkpoints.iterdir()) / "state-00000.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    with life(folder, redis_url) as learner:
        assert learner.loop.resumed is not None
        assert learner.loop.resumed.weight_version == ROUNDS - 1
        assert learner.go() is Outcome.FINISHED
        check(folder, learner, in_peace)


@pytest.mark.parametrize("name", ["00000000/model.safetensors", "00000000/config.json", "00000002/delta.bin"])
def test_versions_that_rot_are_made_again_when_the_learner_starts(
    name: str, folder: RunFolder, redis_url: str, in_peace: dict[int, str]
) -> None:
    with life(folder, redis_url) as learner, Answering(redis_url, learner.keys, may_answer=lambda task: task.round < 3):
        stopping = threading.Thread(target=stop_after, args=(learner.loop, folder, 3))
        stopping.start()
        learner.loop.run()
        stopping.join()
    rotten = folder.weights / name
    rotten.write_bytes(b"x" * rotten.stat().st_size)
    with life(folder, redis_url) as learner:
        assert learner.go() is Outcome.FINISHED
        kinds = [event.kind for event in last_events(learner.client, learner.keys)]
    assert "version_unusable" in kinds
    store = WeightReader(folder.weights, folder.run_id)
    assert digests(folder).items() <= in_peace.items()
    assert ROUNDS in store.versions()
    assert 0 in store.versions()
    assert find_damage(store) == {}


def stop_after(loop: Loop, folder: RunFolder, rounds: int) -> None:
    until(lambda: sum(1 for _ in folder.rounds()) == rounds)
    loop.stop()


def test_a_learner_that_was_replaced_writes_nothing_more(folder: RunFolder, redis_url: str) -> None:
    """As one that was stopped for longer than anybody waits, and wakes up."""

    def state() -> dict[str, object]:
        files = {str(path): path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file()}
        return {**files, **{str(key): client.dump(key) for key in client.scan_iter()}}

    with connect(redis_url) as client:
        own = take_over(client, Keys(folder.run_id), folder.learner_epoch)
        with life(folder, redis_url, fence=own) as learner:
            learner.loop.trainer.train_round = replaced_in(learner, folder)  # type: ignore[assignment,method-assign]
            with pytest.raises(FencedError, match="another learner has taken over"):
                learner.go()
            before = state()
        assert state() == before
    assert folder.checkpointed() == []
    assert WeightReader(folder.weights, folder.run_id).versions() == [0]
    assert list(folder.rounds()) == []


def replaced_in(learner: Life, folder: RunFolder) -> Callable[[Iterable[TrainingSample]], RoundStats]:
    """Trains a round, at the end of which another learner has taken over."""
    train = learner.loop.trainer.train_round

    def train_round(samples: Iterable[TrainingSample]) -> RoundStats:
        stats = train(samples)
        take_over(learner.client, learner.keys, folder.learner_epoch)
        return stats

    return train_round


def test_every_second_is_accounted_to_what_it_was_spent_on(folder: RunFolder, redis_url: str) -> None:
    starting_s = set()

    def look(tokens: object) -> str:
        starting_s.add(learner.loop.reporter._clock.seconds()["starting"])
        return str(tokens)

    with life(folder, redis_url, every_rounds=2, text_of=look) as learner:
        clock, began = learner.loop.reporter._clock, time.monotonic()
        before_s = sum(clock.seconds().values())
        assert learner.go() is Outcome.FINISHED
        seconds, wall_s = clock.seconds(), time.monotonic() - began
    assert sum(seconds.values()) - before_s == pytest.approx(wall_s, abs=0.01)
    assert starting_s == {seconds["starting"]}, "nothing counts as starting once rounds are trained"
    assert seconds.keys() == {"starting", "waiting_for_rollouts", "training", "publishing", "checkpointing"}
    rounds = list(folder.rounds())
    assert seconds["waiting_for_rollouts"] == pytest.approx(sum(line.learner_wait_s for line in rounds))
    assert seconds["training"] >= sum(line.train_s for line in rounds)


def test_rounds_follow_each_other_without_a_gap(folder: RunFolder, redis_url: str) -> None:
    """Their lengths add up to the time from the first's start to the last's end, whenever they were written down."""
    with life(folder, redis_url, max_staleness=2, every_rounds=3) as learner:
        began = time.monotonic()
        assert learner.go() is Outcome.FINISHED
        wall_s = time.monotonic() - began
    rounds = list(folder.rounds())
    assert sum(line.train_s for line in rounds) <= sum(line.round_s for line in rounds) <= wall_s
    for line in rounds:
        assert line.learner_wait_s + line.train_s <= line.round_s


def test_a_version_that_cannot_be_published_ends_the_run_at_once(folder: RunFolder, redis_url: str) -> None:
    (folder.weights / "00000001").write_text("a file where version 1 should be")
    started = time.monotonic()
    with life(folder, redis_url, every_rounds=10) as learner, pytest.raises(UnavailableError, match="00000001"):
        learner.go()
    assert time.monotonic() - started < PATIENCE_S / 2


def until(condition: Callable[[], bool]) -> None:
    """Look again and again, from another thread than the one that works."""
    over = threading.Event()
    for _ in range(int(PATIENCE_S * 100)):
        if condition():
            return
        over.wait(0.01)
    raise AssertionError("it never came to that")
