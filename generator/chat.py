"""OpenAI's chat routes for the model that a generator serves, answered by vLLM's own serving code.

Chat requests share the engine with the tasks and never hold more than CHAT_SHARE of it. An answer names the versions
that sampled it: `model` is RUN@vN, the version when the request came, and `system_fingerprint` names every version that
sampled its tokens, as v12 or v12-v13.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.exceptions import VLLMError
from vllm.outputs import RequestOutput
from vllm.renderers.online_renderer import OnlineRenderer

from generator.engines.base import Engine
from generator.engines.vllm.engine import VllmEngine
from services.api.auth import AuthMiddleware
from services.api.limits import BodyLimit
from services.api.tokens import Role, Tokens
from services.errors import ConfigError, SeptError, UnavailableError
from services.net import listen, listener_url, split_address

CHAT_SHARE = 0.1
"""Share of generator.max_in_flight that chat may hold, one request at least; more is answered 429."""
RETRY_AFTER_S = 1
"""The Retry-After of a 429 answer."""
MAX_BODY_BYTES = 1 << 22
"""A conversation is text: 4 MiB are more than any model reads."""
SHUTDOWN_DEADLINE_S = 5.0
"""Longest wait for unfinished answers when the generator ends."""

ALLOWED_VALUES: dict[str, Any] = {
    "n": (None, 1),
    "use_beam_search": (False,),
    "prompt_logprobs": (None,),
    "response_format": (None,),
    "structured_outputs": (None,),
    "seed": (None,),
}
"""Fields whose other values cost more than one request, slow down other requests, or (a seed, on CPU) end the engine
when a request is preempted."""

log = structlog.get_logger()

_versions: ContextVar[set[int]] = ContextVar("versions")
"""Versions that sampled the answer to the current request."""


def chat_slots(max_in_flight: int) -> int:
    """Chat requests that may be in the engine at once."""
    return max(1, int(CHAT_SHARE * max_in_flight))


class ChatSlots:
    """At most `count` chat requests in the engine; the others are rejected, not queued."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.used = 0

    def try_acquire(self) -> bool:
        """False when all slots are used."""
        if self.used >= self.count:
            return False
        self.used += 1
        return True

    def release(self) -> None:
        self.used -= 1


@dataclass(frozen=True, slots=True)
class _Client:
    """An AsyncLLM for vLLM's serving code, whose requests survive new weights and record their versions."""

    engine: VllmEngine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine.llm, name)

    async def generate(
        self, prompt: Any, params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        seen = _versions.get()
        async with contextlib.aclosing(self.engine.requests.outputs(prompt, params, request_id, **options)) as outputs:
            async for output in outputs:
                seen.update(int(span.version) for span in output.outputs[0].weight_versions or ())
                yield output


class _Chat(OpenAIServingChat):  # type: ignore[misc]  # vLLM is untyped here
    """Its fingerprint names the versions of the current answer."""

    @property
    def system_fingerprint(self) -> str | None:
        seen = _versions.get(set())
        return f"v{min(seen)}" + (f"-v{max(seen)}" if len(seen) > 1 else "") if seen else None

    @system_fingerprint.setter
    def system_fingerprint(self, value: str | None) -> None:
        """Ignores vLLM's, which is one for the whole server."""


class _Models(OpenAIServingModels):  # type: ignore[misc]
    """One model, requested by the run's name; its answers and its listed root say RUN@vN."""

    def model_name(self, lora_request: object = None) -> str:
        return f"{self.base_model_paths[0].name}@v{self.engine_client.engine.requests.version}"

    async def show_available_models(self) -> Any:
        listed = await super().show_available_models()
        return listed.model_copy(
            update={"data": [card.model_copy(update={"root": self.model_name()}) for card in listed.data]}
        )


class ChatHandlers:
    """vLLM's handlers of the chat routes, on one engine."""

    def __init__(self, engine: VllmEngine, run_id: str, slots: ChatSlots) -> None:
        self._slots = slots
        client = _Client(engine)
        self._models = _Models(client, [BaseModelPath(run_id, run_id)])
        template = {"chat_template": None, "chat_template_content_format": "auto"}
        renderer = OnlineRenderer(engine.llm.model_config, engine.llm.renderer, request_logger=None, **template)
        self._chat = _Chat(client, self._models, "assistant", online_renderer=renderer, request_logger=None, **template)

    async def models(self) -> dict[str, Any]:
        """The run's name, with the version that is served now."""
        listed: dict[str, Any] = (await self._models.show_available_models()).model_dump()
        return listed

    async def answer(self, request: ChatCompletionRequest, raw: Request) -> Response:
        """One answer, whole or as a stream; 429 when chat holds its share of the engine already."""
        for name, allowed in ALLOWED_VALUES.items():
            if getattr(request, name) not in allowed:
                return _error_response(f"{name} is not offered during a training run", HTTPStatus.BAD_REQUEST)
        if not self._slots.try_acquire():
            return _error_response(
                f"all {self._slots.count} chat slots of the engine are used",
                HTTPStatus.TOO_MANY_REQUESTS,
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        with contextlib.ExitStack() as slot:
            slot.callback(self._slots.release)
            seen: set[int] = set()
            _versions.set(seen)
            answer = await self._chat.create_chat_completion(request, raw)
            if isinstance(answer, ErrorResponse):
                return JSONResponse(answer.model_dump(), answer.error.code)
            if isinstance(answer, AsyncGenerator):
                return StreamingResponse(_stream_in_slot(answer, seen, slot.pop_all()), media_type="text/event-stream")
            return JSONResponse(answer.model_dump())


async def _stream_in_slot(
    stream: AsyncGenerator[str, None], seen: set[int], slot: contextlib.ExitStack
) -> AsyncIterator[str]:
    """The stream's pieces; the slot is released at its end. Sets `_versions` again, as another task may send it."""
    _versions.set(seen)
    with slot:
        async with contextlib.aclosing(stream):
            async for piece in stream:
                yield piece


def _error_response(message: str, status: HTTPStatus, headers: dict[str, str] | None = None) -> Response:
    error = create_error_response(message, err_type=status.phrase, status_code=status)
    return JSONResponse(error.model_dump(), status, headers)


def create_chat_app(handlers: ChatHandlers, token: str | None) -> FastAPI:
    """OpenAI's two routes, behind the same token as the services."""
    app = FastAPI(title="SePT chat", openapi_url=None)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return await handlers.models()

    @app.post("/v1/chat/completions")
    @with_cancellation  # type: ignore[untyped-decorator]
    async def chat(request: ChatCompletionRequest, raw_request: Request) -> Response:
        try:
            return await handlers.answer(request, raw_request)
        except (VLLMError, ValueError, TypeError, OverflowError, NotImplementedError) as error:  # as vLLM's own app
            body = create_error_response(error)
            return JSONResponse(body.model_dump(), body.error.code)
        except SeptError as error:
            return _error_response(error.message, HTTPStatus.SERVICE_UNAVAILABLE)

    app.add_middleware(BodyLimit, longest=lambda _method, _path: MAX_BODY_BYTES)
    app.add_middleware(AuthMiddleware, tokens=Tokens({Role.STEER: token}) if token else None)
    return app


class _Server(uvicorn.Server):
    """Installs no signal handlers: the generator has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def open_chat(engine: Engine, run_id: str, *, address: str, slots: int, token: str | None) -> AsyncIterator[str]:
    """Serves chat on `address` ("host:port") within the block; yields the URL. The engine must have started.

    If the address is in use, for instance by another generator of this machine, the generator runs without chat and the
    URL is empty. Without a token the address must be loopback, which the settings check. ConfigError for an engine
    other than vLLM's.
    """
    if not isinstance(engine, VllmEngine):
        raise ConfigError(
            "generator.chat needs vLLM's engine", hint="set generator.engine to vllm, or leave generator.chat empty"
        )
    host, port = split_address(address)
    app = create_chat_app(ChatHandlers(engine, run_id, ChatSlots(slots)), token)
    try:
        listener = listen(host, port, setting="generator.chat")
    except UnavailableError as error:
        log.warning("chat_not_offered", reason=error.message, hint=error.hint)
        yield ""
        return
    with listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(SHUTDOWN_DEADLINE_S),
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        log.info("chat_listening", url=listener_url(listener), slots=slots)
        try:
            yield listener_url(listener)
        finally:
            server.should_exit = True
            await serving
