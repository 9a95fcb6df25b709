"""Chooses the prompts of every round, their order and their temperature.

The prompts of the run are one endless sequence of epochs, each a permutation of the data drawn from (seed, epoch).
Round r takes positions r * n to (r + 1) * n - 1 of the sequence, where n is `prompts_per_round`. A round may span two
epochs, and data smaller than a round repeats within it. A recipe of whole rounds takes the largest multiple of n from
the start of each permutation instead. Everything is a pure function of (seed, round), so a learner that resumes gets
the same tasks again. Where prompts are passed over by their vote share, it is a function of the rounds trained before,
too, and its state is part of checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil
from typing import Any

from learner.config import ANY_VOTE_SHARE, SamplingConfig, TrainingConfig
from learner.data.prompt_order import PromptOrder
from learner.data.prompts import Prompt
from learner.data.schedule import sampling_temperature
from learner.data.vote_gate import VoteGate
from learner.recipes import RECIPES
from services.contracts import Task
from services.errors import ConfigError, DataError


class Curriculum:
    """The tasks of every round."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        training: TrainingConfig,
        sampling: SamplingConfig,
        stop_token_ids: Sequence[int],
        vote_shares: tuple[float, float] = ANY_VOTE_SHARE,
    ) -> None:
        """`vote_shares`: as data.vote_share."""
        if not prompts:
            raise DataError("there are no prompts to train on", hint="check data.path and data.max_prompt_tokens")
        self._prompts = prompts
        self._training = training
        self._sampling = sampling
        self._stop_token_ids = tuple(stop_token_ids)
        weights = [prompt.weight for prompt in prompts]
        multiple = training.prompts_per_round if RECIPES[training.recipe].whole_rounds else 1
        if training.data == "fixed":  # every epoch has the prompts that the first one drew answers to
            if any(weight != 1 for weight in weights):
                raise ConfigError(
                    "data.path gives weights, and training.data = fixed answers every prompt once",
                    hint="leave the weights out, or train with training.data = online",
                )
            self._prompts = prompts[: len(prompts) - len(prompts) % multiple]
            weights = weights[: len(self._prompts)]
        self._order = PromptOrder(weights, seed=seed, multiple_of=multiple)
        self._epoch_size = self._order.epoch_size
        self.rounds_total = self._count_rounds()
        self._gate: VoteGate | None = None
        if vote_shares != ANY_VOTE_SHARE:
            ahead = training.max_staleness + 1
            self._gate = VoteGate(vote_shares, self._order, per_round=training.prompts_per_round, ahead=ahead)

    def _count_rounds(self) -> int:
        """`training.rounds` if it is set, else the number of full rounds in `training.epochs`."""
        training = self._training
        if self._epoch_size == 0:
            raise ConfigError(
                f"training.recipe = {training.recipe} takes whole rounds from each epoch, and {len(self._prompts)} "
                f"prompts are less than one of training.prompts_per_round = {training.prompts_per_round}",
                hint="lower training.prompts_per_round, or use training.recipe = default",
            )
        if training.rounds is not None:
            return training.rounds
        # By exact decimals: 0.1 epochs of 1,280 prompts are 128, and binary floats round differently.
        total = int(Fraction(str(training.epochs)) * self._epoch_size / training.prompts_per_round)
        if total == 0:
            raise ConfigError(
                f"training.epochs = {training.epochs} over {len(self._prompts)} prompts is less than one round of "
                f"training.prompts_per_round = {training.prompts_per_round}",
                hint="set training.rounds, raise training.epochs or lower training.prompts_per_round",
            )
        return total

    def epoch_at(self, round_: int) -> float:
        """Training progress u at the start of the round, in epochs."""
        return round_ * self._training.prompts_per_round / self._epoch_size

    def prompts_of(self, round_: int) -> list[Prompt]:
        """The round's prompts in training order; rounds past the last of the run are defined too."""
        if round_ < 0:
            raise ValueError(f"rounds count from 0, got {round_}")
        return [self._prompts[index] for index in self._indices_of(round_)]

    def _indices_of(self, round_: int) -> list[int]:
        if self._gate is not None:
            return self._gate.indices_of(round_)
        count = self._training.prompts_per_round
        return self._order.indices(range(round_ * count, (round_ + 1) * count))

    def is_planned(self, round_: int) -> bool:
        """Whether it is known by now which prompts the round takes."""
        return self._gate is None or self._gate.is_planned(round_)

    def note(self, round_: int, vote_shares: Mapping[int, float]) -> None:
        """Take in how far the answers of a trained round agree, by position; call it before the next is issued."""
        if self._gate is not None:
            indices = self._gate.indices_of(round_)
            self._gate.note(round_, {indices[position]: share for position, share in vote_shares.items()})

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint must hold; None: nothing."""
        return None if self._gate is None else self._gate.state()

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Go on where `state` was taken."""
        if self._gate is not None:
            self._gate.load_state(state)

    def drawn_rounds(self) -> range:
        """The rounds that have tasks: all of the run, or those of the first epoch with a fixed data set."""
        if self._training.data == "online":
            return range(self.rounds_total)
        return range(min(self.rounds_total, ceil(self._epoch_size / self._training.prompts_per_round)))

    def tasks_of(self, round_: int) -> list[Task]:
        """The round's tasks in training order. An id holds round and position, so a prompt that repeats gets two tasks.

        With a fixed data set only prompts of the first epoch have tasks, all of them for version 0.
        """
        fixed = self._training.data == "fixed"
        first_position = round_ * self._training.prompts_per_round
        return [
            Task(
                task_id=f"r{round_:06d}-{position:05d}",
                round=round_,
                position=position,
                prompt_tokens=prompt.tokens,
                temperature=self._temperature(round_),
                top_p=self._sampling.top_p,
                top_k=self._sampling.top_k,
                min_p=self._sampling.min_p,
                max_response_tokens=self._sampling.max_response_tokens,
                stop_token_ids=self._stop_token_ids,
                samples=self._sampling.rollouts_per_prompt,
                min_weight_version=0 if fixed else max(0, round_ - self._training.max_staleness),
                max_weight_version=0 if fixed else None,
            )
            for position, prompt in enumerate(self.prompts_of(round_))
            if not fixed or first_position + position < self._epoch_size
        ]

    def _temperature(self, round_: int) -> float:
        """tau_s of the round; a fixed data set is sampled at tau_start (the paper's SePT offline)."""
        if self._training.data == "fixed":
            return self._sampling.tau_start
        return sampling_temperature(self._sampling, self.epoch_at(round_))
