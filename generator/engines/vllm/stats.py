"""Keeps the newest numbers of vLLM's scheduler, which vLLM gives to a logger."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.output_processor import OutputProcessor, RequestState
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats


class SchedulerLog:
    """The scheduler's numbers at its last step, and all preemptions so far."""

    def __init__(self) -> None:
        self.latest = SchedulerStats()
        self.preemptions = 0

    def record(self, scheduler_stats: SchedulerStats | None, iteration_stats: IterationStats | None) -> None:
        if scheduler_stats is not None:
            self.latest = scheduler_stats
        if iteration_stats is not None:
            self.preemptions += iteration_stats.num_preempted_reqs


def count_only_preemptions(processor: OutputProcessor) -> None:
    """Make vLLM skip its statistics of every token: they cost a few percent of a small model's steps on a CPU.

    What happened to a request, such as a preemption, is still counted.
    """

    def update(
        request: RequestState, output: EngineCoreOutput, _timestamp: float | None, iteration: IterationStats | None
    ) -> None:
        if iteration is not None and output.events is not None:
            iteration.update_from_events(
                output.request_id,
                output.events,
                request.is_prefilling,
                request.stats,
                processor.lora_states,
                request.lora_name,
            )

    assert callable(processor._update_stats_from_output)  # else another release of vLLM does this elsewhere
    processor._update_stats_from_output = update


def stat_logger(log: SchedulerLog) -> type[PrometheusStatLogger]:
    """A logger class that writes to `log`. vLLM adds its Prometheus logger unless it is given one."""

    class Logger(PrometheusStatLogger):  # type: ignore[misc]  # vLLM is untyped here
        def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int] | None = None) -> None:
            """Registers no metric."""

        def record(
            self,
            scheduler_stats: SchedulerStats | None,
            iteration_stats: IterationStats | None,
            *_args: Any,
            **_kwargs: Any,
        ) -> None:
            log.record(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            """Logs nothing."""

        def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
            """The engine never sleeps."""

    return Logger
