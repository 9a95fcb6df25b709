"""The paper's variants through the whole learner: real queue, real store, a tiny model, answers by formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from learner.config import DataConfig, HealthConfig, LearnerSettings, ModelConfig, SamplingConfig
from learner.run import run_learner
from services.config import DeadlinesConfig, RunConfig
from services.errors import CheckpointError, DataError
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect
from tests.support import tiny_models
from tests.support.answering import Answering
from tests.support.stream_builders import request_stop

PROMPTS = 6
SAMPLES = 4


pytestmark = pytest.mark.usefixtures("signal_handlers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_with_words(tmp_path_factory.mktemp("model"))


def learn(
    path: Path,
    model: Path,
    redis_url: str,
    *,
    answer: str | None = None,
    samples: int = 1,
    health: HealthConfig | None = None,
    **training: Any,
) -> RunFolder:
    """Run the learner to its end and return its folder."""
    folder = RunFolder(path / "run").create()
    rows = [{"question": f"{number} 1", **({"answer": answer} if answer else {})} for number in range(3, 3 + PROMPTS)]
    data = path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Answering(redis_url, Keys(folder.run_id)):
        run_learner(
            folder,
            LearnerSettings(
                run=RunConfig(dir=folder.path),
                model=ModelConfig(path=str(model)),
                data=DataConfig(path=str(data), chat_template="none"),
                sampling=SamplingConfig(max_response_tokens=8, rollouts_per_prompt=samples),
                training=tiny_models.training(prompts_per_round=4, **training),
                deadlines=DeadlinesConfig(rollouts_s=60),
                health=health or HealthConfig(action="off"),
            ),
            redis_url=redis_url,
        )
    return folder


def answers_of(folder: RunFolder, round_: int) -> list[dict[str, Any]]:
    text = (folder.rollouts / f"round-{round_:06d}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_grpo_trains_on_rewards_that_are_recorded_with_the_answers(tmp_path: Path, model: Path, redis_url: str) -> None:
    folder = learn(tmp_path, model, redis_url, answer="31", samples=SAMPLES, algorithm="grpo", rounds=2)
    rounds = list(folder.rounds())
    assert [metrics.rollouts for metrics in rounds] == [16, 16]
    for metrics in rounds:
        rewards = [answer["reward"] for answer in answers_of(folder, metrics.round)]
        right = [answer["answer"].split()[-1:] == ["31"] for answer in answers_of(folder, metrics.round)]
        assert set(rewards) <= {0.0, 1.0}
        assert all(reward == 1.0 for reward, is_right in zip(rewards, right, strict=True) if is_right)
        assert (metrics.peak_memory_bytes or 0) > 0
        assert metrics.entropy is None
        assert metrics.reward_mean == pytest.approx(sum(rewards) / 16)


@pytest.mark.parametrize("algorithm", ["majority_vote", "self_certainty"])
def test_rewards_without_labels_are_recorded_with_the_answers(
    tmp_path: Path, model: Path, redis_url: str, algorithm: str
) -> None:
    folder = learn(tmp_path, model, redis_url, samples=SAMPLES, algorithm=algorithm, rounds=1)
    (metrics,) = folder.rounds()
    records = answers_of(folder, 0)
    rewards = [answer["reward"] for answer in records]
    assert len(rewards) == 16
    assert metrics.reward_mean == pytest.approx(sum(rewards) / 16)
    by_prompt = [records[first : first + SAMPLES] for first in range(0, 16, SAMPLES)]
    assert all(abs(sum(answer["signal"] for answer in group)) < 1e-4 for group in by_prompt), "advantages of a group"
    if algorithm == "majority_vote":
        assert [answer["vote"] for answer in records] == [reward == 1.0 for reward in rewards]
        assert metrics.vote_share == pytest.approx(sum(rewards) / 16)
        assert metrics.distinct_answers == pytest.approx(
            sum(len({answer["class"] for answer in group} - {None}) for group in by_prompt) / 4
        )


def test_grpo_without_reference_answers_is_refused_before_anything_is_sampled(
    tmp_path: Path, model: Path, redis_url: str
) -> None:
    with pytest.raises(DataError, match="none of the 6 prompts"):
        learn(tmp_path, model, redis_url, samples=SAMPLES, algorithm="grpo", rounds=1)


def test_a_fixed_data_set_is_drawn_once_and_trained_in_every_epoch(tmp_path: Path, model: Path, redis_url: str) -> None:
    folder = learn(tmp_path, model, redis_url, data="fixed", epochs=4)
    rounds = list(folder.rounds())
    assert [metrics.round for metrics in rounds] == list(range(6))
    assert {metrics.tau_s for metrics in rounds} == {0.6}
    answers = [answer for metrics in rounds for answer in answers_of(folder, metrics.round)]
    by_question: dict[str, set[str]] = {}
    for answer in answers:
        by_question.setdefault(answer["question"], set()).add(answer["answer"])
    assert len(answers) == 4 * PROMPTS
    assert {len(texts) for texts in by_question.values()} == {1}
    assert rounds[-1].loss < rounds[0].loss
    with connect(redis_url) as client:
        assert client.xlen(Keys(folder.run_id).rollouts) == 0


def test_a_fixed_data_set_outlives_the_learner(tmp_path: Path, model: Path, redis_url: str) -> None:
    """The second learner trains on the answers that the first one was given, to the same losses."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = learn(tmp_path / "whole", model, redis_url, data="fixed", rounds=4)

    folder = RunFolder(tmp_path / "parts" / "run").create()
    with connect(redis_url) as client:
        keys = Keys(folder.run_id)
        request_stop(client, keys)
        learn(tmp_path / "parts", model, redis_url, data="fixed", rounds=4)
        assert len(list(folder.rounds())) == 1
        request_stop(client, keys, False)
    learn(tmp_path / "parts", model, redis_url, data="fixed", rounds=4)
    assert [metrics.loss for metrics in folder.rounds()] == [metrics.loss for metrics in whole.rounds()]


def test_a_fixed_data_set_that_is_gone_is_not_drawn_from_another_model(
    tmp_path: Path, model: Path, redis_url: str
) -> None:
    learn(tmp_path, model, redis_url, data="fixed", rounds=1)
    with pytest.raises(CheckpointError, match="base model"):
        learn(tmp_path, model, redis_url, data="fixed", rounds=2)


def test_health_is_recorded_and_goes_on_after_a_resume(tmp_path: Path, model: Path, redis_url: str) -> None:
    for rounds in (1, 2):
        folder = learn(tmp_path, model, redis_url, health=HealthConfig(), rounds=rounds)
    for metrics in folder.rounds():
        assert (metrics.entropy or 0) > 0
        assert metrics.nll_tau_s != metrics.nll_tau_1
