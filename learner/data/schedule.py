"""Schedules of the sampling temperature and the learning rate: pure functions of settings and progress."""

from __future__ import annotations

import math

from learner.config import TAU_S, SamplingConfig, TrainingConfig
from learner.recipes import RECIPES


def sampling_temperature(config: SamplingConfig, epoch: float) -> float:
    """tau_s after `epoch` passes over the prompts (u in the paper, fractions included).

    linear:   tau_s(u) = tau_start + (u / E) (tau_end - tau_start)                        for u < E, then tau_end
    cosine:   tau_s(u) = tau_end - (tau_end - tau_start) (1 + cos(pi u / E)) / 2          for u < E, then tau_end
    constant: tau_s(u) = tau_start

    with E = `anneal_epochs`. The paper's schedule (arXiv 2510.18814) is linear with E = 2 and tau_end = 1; its
    reference code offers the cosine as well.
    """
    if config.schedule == "constant":
        return config.tau_start
    progress = min(max(epoch / config.anneal_epochs, 0.0), 1.0)
    if config.schedule == "cosine":
        progress = (1.0 - math.cos(math.pi * progress)) / 2.0
    return (1.0 - progress) * config.tau_start + progress * config.tau_end


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Learning rate of optimizer step `step` (0 is the run's first), as the recipe says; W = `warmup_steps`.

    constant: (step + 1) / W of the rate for step < W, so that no rollout is wasted, then all of it
    by_round: the same for all steps of a round: (first step of the round) / W, which is 0 in round 0 (verl's schedule)
    cosine:   step / W for step < W, then (1 + cos(pi (step - W) / (S - W))) / 2, S the steps of the whole run
    """
    warmup = config.warmup_steps
    rate = RECIPES[config.recipe].phase(config.data).rate
    if rate == "constant":
        share = (step + 1) / warmup if step < warmup else 1.0
    elif rate == "by_round":
        first = step - step % config.steps_per_round
        share = first / warmup if first < warmup else 1.0
    elif step < warmup:
        share = step / warmup
    else:
        assert config.rounds is not None, "the settings ask for training.rounds"
        left = max(1, config.rounds * config.steps_per_round - warmup)
        share = (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / left))) / 2.0
    return config.learning_rate * share


def training_temperature(config: TrainingConfig, sampled_at: float) -> float:
    """tau_t of a round whose answers were sampled at the temperature `sampled_at`."""
    return sampled_at if config.tau_t == TAU_S else config.tau_t
