"""Evaluations beside training: exact versions, beside the rounds and not in them, in the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from learner.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    HealthConfig,
    LearnerSettings,
    ModelConfig,
    SamplingConfig,
)
from learner.evaluation.generations import read_generations
from learner.run import run_learner
from services.config import DeadlinesConfig, RunConfig
from services.run_folder import RunFolder
from services.streams.connection import Keys, connect
from tests.support import tiny_models
from tests.support.answering import Answering

pytestmark = pytest.mark.usefixtures("signal_handlers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_with_words(tmp_path_factory.mktemp("model"))


def learn(path: Path, model: Path, redis_url: str, *, rounds: int, every_rounds: int) -> RunFolder:
    folder = RunFolder(path / "run").create()
    data, held_out = path / "data.jsonl", path / "held.jsonl"
    data.write_text("".join(json.dumps({"question": f"{number} 1"}) + "\n" for number in range(3, 9)))
    held_out.write_text(json.dumps({"question": "9 1", "answer": "31"}) + "\n")
    evaluation = EvaluationConfig(every_rounds=every_rounds, benchmarks=(f"held={held_out}",), samples=3)
    with Answering(redis_url, Keys(folder.run_id)):
        run_learner(
            folder,
            LearnerSettings(
                run=RunConfig(dir=folder.path),
                model=ModelConfig(path=str(model)),
                data=DataConfig(path=str(data), chat_template="none"),
                sampling=SamplingConfig(max_response_tokens=8),
                training=tiny_models.training(prompts_per_round=4, rounds=rounds),
                checkpoint=CheckpointConfig(every_rounds=1),
                evaluation=evaluation,
                deadlines=DeadlinesConfig(rollouts_s=60),
                health=HealthConfig(action="off"),
            ),
            redis_url=redis_url,
        )
    return folder


def test_due_versions_and_the_last_are_evaluated_each_by_itself(tmp_path: Path, model: Path, redis_url: str) -> None:
    folder = learn(tmp_path, model, redis_url, rounds=5, every_rounds=2)
    rounds = list(folder.rounds())
    evaluated = {found.weight_version: line.round for line in rounds for found in line.evaluations}
    assert evaluated == {0: 0, 2: 1, 4: 3, 5: 4}  # version -> round with whose line it stands
    assert rounds[4].evaluations[0].pass_at_k["held"].keys() == {1, 2, 3}
    for version in evaluated:
        answers = list(read_generations(folder.evaluations / f"v{version:06d}" / "generations.jsonl"))
        assert {answer.weight_version for answer in answers} == {version}
        assert len(answers) == 3


def test_the_last_version_alone_is_evaluated_where_none_is_due_before_it(
    tmp_path: Path, model: Path, redis_url: str
) -> None:
    folder = learn(tmp_path, model, redis_url, rounds=2, every_rounds=3)
    assert [path.name for path in folder.evaluations.iterdir()] == ["v000002"]


def test_an_evaluation_of_other_weights_counts_as_none(tmp_path: Path, model: Path, redis_url: str) -> None:
    folder = learn(tmp_path, model, redis_url, rounds=1, every_rounds=2)
    described = folder.evaluations / "v000001" / "evaluation.json"
    before = json.loads(described.read_text())
    described.write_text(json.dumps(before | {"digest": "of other weights"}))
    learn(tmp_path, model, redis_url, rounds=1, every_rounds=2)
    assert json.loads(described.read_text()) == before


def test_evaluation_leaves_the_training_rounds_alone(tmp_path: Path, model: Path, redis_url: str) -> None:
    with_evaluation = learn(tmp_path / "a", model, redis_url, rounds=3, every_rounds=1)
    without = learn(tmp_path / "b", model, redis_url, rounds=3, every_rounds=0)
    assert [line.loss for line in with_evaluation.rounds()] == [line.loss for line in without.rounds()]
    with connect(redis_url) as client:
        assert client.xlen(Keys(with_evaluation.run_id).rollouts) == 0


def test_an_evaluation_that_an_interruption_left_out_is_made_up_for(
    tmp_path: Path, model: Path, redis_url: str
) -> None:
    folder = learn(tmp_path, model, redis_url, rounds=2, every_rounds=2)
    (folder.evaluations / "v000002" / "results.json").unlink()
    (folder.evaluations / "v000002" / "generations.jsonl").unlink()
    lines = folder.metrics.read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"evaluations": []})
    folder.metrics.write_text("\n".join(lines) + "\n")
    again = learn(tmp_path, model, redis_url, rounds=2, every_rounds=2)
    assert [[found.weight_version for found in line.evaluations] for line in again.rounds()] == [[0], [2]]
