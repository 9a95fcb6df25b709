"""The life of vLLM's engine core, a process of its own: it starts, it answers or it has died, it ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import PrometheusStatLogger

from generator.engines.vllm.handover import GENERATOR_PID
from generator.engines.vllm.stats import count_only_preemptions
from services.errors import DeadlineError, EngineError

CALL_DEADLINE_S = 600.0
"""Longest wait for an answer of the workers; applying an update may take minutes."""
STOP_DEADLINE_S = 12.0
"""Longest wait for the processes to end by themselves; killed ones leave shared memory behind."""

T = TypeVar("T")


class EngineCore:
    """One AsyncLLM. `llm` raises EngineError unless it serves."""

    def __init__(self) -> None:
        self._llm: AsyncLLM | None = None
        self._failure: EngineError | None = None

    @property
    def llm(self) -> AsyncLLM:
        if self._failure is not None:
            raise self._failure
        if self._llm is None:
            raise EngineError("the vLLM engine is not running", hint="start it first")
        if self._llm.errored:
            raise self.died()
        return self._llm

    async def start(self, arguments: AsyncEngineArgs, logger: type[PrometheusStatLogger], version: int) -> None:
        """Load the model, whose weights are `version`. Raises what vLLM raises."""
        os.environ[GENERATOR_PID] = str(os.getpid())
        self._llm = llm = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments, stat_loggers=[logger])
        count_only_preemptions(llm.output_processor)
        # cached by this first call, so that adding a request never waits between reading the version and queueing
        await llm.get_supported_tasks()
        await llm.update_weight_version(str(version))

    async def call(self, call: Coroutine[Any, Any, T]) -> T:
        """Await an answer of the workers. vLLM itself would wait even after their death."""
        assert self._llm is not None
        self._llm._run_output_handler()
        task, alive = asyncio.create_task(call), self._llm.output_handler
        try:
            done, _ = await asyncio.wait({task, alive}, timeout=CALL_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
        if task not in done:
            raise self.died() if done else DeadlineError("vLLM's workers", "an answer", CALL_DEADLINE_S)
        try:
            return await task
        except EngineDeadError as error:
            raise self.died() from error
        # what the workers raise arrives as a bare Exception with their text
        except Exception as error:
            raise EngineError(f"vLLM's workers failed: {error}") from error

    def fail(self, failure: EngineError) -> None:
        """Serve nothing any more; requests in flight end with an error."""
        self._failure = failure
        if self._llm is not None:
            self._llm.output_processor.propagate_error(EngineDeadError())

    def died(self) -> EngineError:
        """The error that says why nothing is served."""
        return self._failure or EngineError(
            "vLLM's engine core has died", hint="its own log above says why; restart this generator"
        )

    async def stop(self) -> None:
        """End the processes; does nothing when there are none."""
        if self._llm is None:
            return
        llm, self._llm = self._llm, None
        llm.output_processor.propagate_error(EngineDeadError())
        if llm.output_handler is not None:
            llm.output_handler.cancel()
        await asyncio.to_thread(llm.shutdown, STOP_DEADLINE_S)
        llm.engine_core.resources.ctx.destroy(linger=0)  # vLLM leaves it to the garbage collector
