"""The contenders of the learner's benchmark do the same work: equal loss curves on the same data in the same order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.learner_peers import PEERS, Pair, number_tokenizer
from tests.support import tiny_models

STEPS = 4
PER_STEP = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.save(tmp_path_factory.mktemp("model"))
    number_tokenizer(tiny_models.VOCABULARY).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def steps() -> list[list[Pair]]:
    """Lengths differ, so a mean of means would show."""
    generator = np.random.default_rng(5)

    def pair() -> Pair:
        return tiny_models.tokens(generator, int(generator.integers(2, 8))), tiny_models.tokens(
            generator, int(generator.integers(1, 20))
        )

    return [[pair() for _ in range(PER_STEP)] for _ in range(STEPS)]


@pytest.mark.filterwarnings("ignore")  # TRL's and accelerate's own
@pytest.mark.parametrize(("name", "setting"), [("trl", 1), ("trl", 2), ("bare", 1), ("bare", 4)])
def test_loss_curve_is_that_of_the_peer(model: Path, steps: list[list[Pair]], name: str, setting: int) -> None:
    """TRL's SFTTrainer and transformers' own loss; the rate makes the curve move by far more than the tolerance."""
    ours = PEERS["sept"](model, steps, 40, learning_rate=1e-3)
    theirs = PEERS[name](model, steps, setting, learning_rate=1e-3)
    assert ours.losses == pytest.approx(theirs.losses, rel=2e-5)
    assert len(ours.losses) == len(ours.cpu_s) == len(theirs.cpu_s) == STEPS
