"""What an algorithm asks of the weights at a round's start, before the first optimizer step changes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from learner.algorithms.base import (
    Algorithm,
    ScoredGroup,
    Signal,
    Targets,
    TokenLoss,
    TokenLosses,
    TokenScore,
    group_seed,
)
from learner.algorithms.nll import nll
from learner.config import TrainingConfig
from learner.data.schedule import training_temperature
from learner.model.trained_model import TrainedModel
from learner.training.batch_sharding import GlobalMicroBatch, Response


class FirstPass:
    """Without gradients, over the micro-batches as they will be trained; all ranks take part."""

    def __init__(self, model: TrainedModel, algorithm: Algorithm, config: TrainingConfig) -> None:
        self._model = model
        self._algorithm = algorithm
        self._config = config

    def ask(self, mini_batch: Iterable[GlobalMicroBatch]) -> tuple[list[GlobalMicroBatch], list[Signal]]:
        """The micro-batches of one optimizer step with old log-probabilities and signals, as the algorithm needs them;
        and the signal of each response, for an algorithm that has a score."""
        parts, scores = [], []
        for part in mini_batch:
            log_probs, score = self._of_tokens(part)
            parts.append(replace(part, targets=replace(part.targets, old_log_probs=log_probs)))
            scores.append((part, score))
        if self._algorithm.score_signals is None:
            return parts, []
        responses = [response for part in parts for response in part.responses]
        totals = _response_sums(scores, len(responses))
        self._model.ranks.all_reduce_sum(torch.from_numpy(totals))
        signals = self._signals(responses, totals)
        weights = [signal.weight for signal in signals]
        return [part.with_signals(weights) for part in parts], signals

    def _of_tokens(self, part: GlobalMicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """[N] log-probabilities and scores of this rank's tokens."""
        asked = _side_by_side(self._algorithm.score)
        with torch.no_grad():
            tau = training_temperature(self._config, part.temperature)
            losses = self._model.token_losses(part.batch, asked, part.targets, tau)
        log_probs, scores = losses.log_probs.unbind(dim=-1)
        return log_probs, scores

    def _signals(self, responses: Sequence[Response], totals: NDArray[np.float64]) -> list[Signal]:
        """One a response, group by group."""
        assert self._algorithm.score_signals is not None
        signals: list[Signal] = []
        for position, members in groupby(responses, key=lambda response: response.position):
            group = list(members)
            signals += self._algorithm.score_signals(
                ScoredGroup(
                    totals=tuple(float(totals[response.step_index]) for response in group),
                    tokens=tuple(int(response.tokens.size) for response in group),
                    seed=group_seed(position, [response.tokens for response in group]),
                )
            )
        return signals


def _response_sums(parts: Sequence[tuple[GlobalMicroBatch, torch.Tensor]], count: int) -> NDArray[np.float64]:
    """[count] for each response of an optimizer step the sum over its tokens; 0 for responses of other ranks.

    `parts` are micro-batches, each with the values [N] of this rank's tokens.
    """
    sums = np.zeros(count)
    for part, of_tokens in parts:
        if part.positions:
            starts = np.cumsum([0, *part.batch.response_lengths[:-1]])
            sums[np.array(part.positions)] = np.add.reduceat(of_tokens.double().cpu().numpy(), starts)
    return sums


def _side_by_side(score: TokenScore | None) -> TokenLoss:
    """A loss whose log-probabilities are [N, 2]: those, and the scores beside them, from the same logits."""

    def losses(logits_NV: torch.Tensor, targets: Targets) -> TokenLosses:
        known = nll(logits_NV, targets)
        beside = known.log_probs if score is None else score(logits_NV, targets)
        return TokenLosses(known.loss, torch.stack([known.log_probs, beside], dim=-1))

    return losses
