"""The algorithms by name. A new one needs its own file and its place in this list."""

from __future__ import annotations

from learner.algorithms.base import Algorithm
from learner.algorithms.controls import FORMAT_REWARD, RANDOM_REWARD, WRONG_REWARD
from learner.algorithms.empo import EMPO
from learner.algorithms.entropy import ENTROPY
from learner.algorithms.entropy_reward import ENTROPY_REWARD
from learner.algorithms.grpo import GRPO
from learner.algorithms.majority_vote import MAJORITY_VOTE
from learner.algorithms.nll import NLL
from learner.algorithms.power import POWER
from learner.algorithms.self_certainty import SELF_CERTAINTY
from learner.algorithms.ssd import SSD
from learner.algorithms.vote_nll import VOTE_NLL

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        NLL,
        ENTROPY,
        GRPO,
        MAJORITY_VOTE,
        VOTE_NLL,
        EMPO,
        SELF_CERTAINTY,
        ENTROPY_REWARD,
        POWER,
        SSD,
        RANDOM_REWARD,
        FORMAT_REWARD,
        WRONG_REWARD,
    )
}
"""What training.algorithm can name."""
