"""Schedules of the sampling temperature and the learning rate: pure functions of settings and progress."""

from __future__ import annotations

import math

from learner.config import SamplingConfig, TrainingConfig


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
    """Learning rate of optimizer step `step` (0 is the run's first): linear warm-up, then constant.

    Step 0 uses 1 / warmup_steps of the rate, not 0, so that no rollout is wasted; step `warmup_steps` - 1 uses it all.
    """
    if step >= config.warmup_steps:
        return config.learning_rate
    return config.learning_rate * (step + 1) / config.warmup_steps
