"""Requests to vLLM: they wait while weights are replaced, and start over where the new weights demand it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from typing import Any

from vllm import SamplingParams
from vllm.inputs.engine import EngineInput
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from generator.engines.base import Completion
from generator.engines.vllm.core import EngineCore
from services.contracts import Task, VersionSpan
from services.errors import EngineError

SCORING = SamplingParams(
    temperature=0.0,
    max_tokens=1,  # vLLM samples at least one
    prompt_logprobs=0,  # those of the prompt's own tokens; vLLM then computes all of it, without cached prefixes
    detokenize=False,
    output_kind=RequestOutputKind.FINAL_ONLY,
)


class Requests:
    """The requests of one engine core, and the version that answers new ones.

    A request that has no token yet when an update comes starts over, so that no response begins after a prompt that
    older weights have read. The others keep their tokens and their KV.
    """

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self.version = -1
        """The version that answers what is requested now."""
        self._accepting = asyncio.Event()
        self._updates = 0
        self._restarting: set[str] = set()
        self._numbers = itertools.count()

    def start(self, version: int) -> None:
        """Accept requests for an engine that serves `version`."""
        self.version = version
        self.accept()

    def accept(self) -> None:
        """Submit new requests, and those that waited."""
        self._accepting.set()

    def block(self) -> None:
        """Make new requests wait until `accept`."""
        self._accepting.clear()

    def set_version(self, version: int) -> None:
        """Another version answers what is requested from now on."""
        self.version = version
        self._updates += 1

    async def restart(self, llm: AsyncLLM, *, everything: bool) -> None:
        """Abort the requests without a token, or all of them, and submit them again once requests are accepted."""
        restarting = [
            (internal_id, state.external_req_id)
            for internal_id, state in llm.output_processor.request_states.items()
            if everything or not state.weight_version_starts
        ]
        self._restarting.update(request_id for _, request_id in restarting)
        await llm.abort([internal_id for internal_id, _ in restarting], internal=True)

    async def outputs(
        self, prompt: EngineInput, params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """vLLM's outputs of one request. It starts over where new weights demand it, unless some output was yielded."""
        yielded = False
        while True:
            await self._accepting.wait()
            llm = self._core.llm
            numbered = f"{request_id}.{next(self._numbers)}"
            # the salt keeps new requests away from prefix blocks that other weights have computed
            salted = {**prompt, "cache_salt": f"{self.version}.{self._updates}"}
            async for output in llm.generate(salted, params, numbered, **options):
                if yielded or numbered not in self._restarting:
                    yielded = True
                    yield output
            if numbered not in self._restarting:
                return
            self._restarting.discard(numbered)
            if yielded:
                return

    async def final_output(self, prompt: EngineInput, params: SamplingParams, request_id: str) -> RequestOutput:
        """The last output of one request.

        Raises:
            EngineError: the engine core has died, or vLLM refuses the request.
        """
        try:
            async for output in self.outputs(prompt, params, request_id):
                last = output
        except (EngineDeadError, EngineGenerateError) as error:
            raise self._core.died() from error
        except ValueError as error:
            raise EngineError(f"vLLM refused request {request_id}: {error}") from error
        return last


def sampling_params(task: Task) -> SamplingParams:
    """How one response to the task is sampled."""
    return SamplingParams(
        temperature=task.temperature,
        top_p=task.top_p,
        top_k=task.top_k,
        min_p=task.min_p,
        max_tokens=task.max_response_tokens,
        stop_token_ids=list(task.stop_token_ids),
        ignore_eos=True,  # the task names every token that ends a response
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def completion(response: CompletionOutput) -> Completion:
    """A finished response as the generator reads it; EngineError when vLLM aborted it."""
    if response.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a request with {response.finish_reason!r}")
    spans = tuple(
        VersionSpan(weight_version=int(span.version), start=span.start, end=span.end)
        for span in response.weight_versions or ()
    )
    return Completion(list(response.token_ids), response.finish_reason, spans)
