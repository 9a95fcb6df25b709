"""Lets people talk to the model that a generator serves: OpenAI's chat routes, answered by vLLM's own serving code.

Runs beside the tasks on the same engine and never takes more than its share of it. Knows no queue and no learner. An
answer says which versions sampled it: `model` is RUN@vN, the version when the request came, and `system_fingerprint`
names every version that sampled its tokens, as v12 or v12-v13.
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
from generator.engines.vllm import VllmEngine
from services.api.auth import AuthMiddleware
from services.api.limits import BodyLimit
from services.errors import ConfigError, SeptError, UnavailableError
from services.net import listen, listener_url, split_address

RETRY_AFTER_S = 1
"""What a client that found no room is told to wait."""
MAX_BODY_BYTES = 1 << 22
"""A conversation is text: 4 MiB hold more than any model reads."""
CLOSE_S = 5.0
"""How long answers under way may take when the generator leaves."""

PLAIN: dict[str, Any] = {
    "n": (None, 1),
    "use_beam_search": (False,),
    "prompt_logprobs": (None,),
    "response_format": (None,),
    "structured_outputs": (None,),
    "seed": (None,),
}
"""Fields whose other values cost more than one request, slow down the requests beside it, or (a seed, on CPU) end
the engine when a request is preempted."""

log = structlog.get_logger()

_versions: ContextVar[set[int]] = ContextVar("versions")
"""Those that sampled the answer to the request at hand."""


class Places:
    """How many answers may be in the engine at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0

    def take(self) -> bool:
        """False when there is no room."""
        if self.taken >= self.count:
            return False
        self.taken += 1
        return True

    def give(self) -> None:
        self.taken -= 1


@dataclass(frozen=True, slots=True)
class _Client:
    """The engine as vLLM's serving code sees it: AsyncLLM, but requests survive new weights, and versions are noted."""

    engine: VllmEngine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine.llm, name)

    async def generate(
        self, prompt: Any, params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        seen = _versions.get()
        async with contextlib.aclosing(self.engine.outputs(prompt, params, request_id, **options)) as outputs:
            async for output in outputs:
                seen.update(int(span.version) for span in output.outputs[0].weight_versions or ())
                yield output


class _Chat(OpenAIServingChat):  # type: ignore[misc]  # vLLM is untyped here
    """Its fingerprint is that of the answer at hand, not of the server."""

    @property
    def system_fingerprint(self) -> str | None:
        seen = _versions.get(set())
        return f"v{min(seen)}" + (f"-v{max(seen)}" if len(seen) > 1 else "") if seen else None

    @system_fingerprint.setter
    def system_fingerprint(self, value: str | None) -> None:
        """vLLM sets one for the whole server."""


class _Models(OpenAIServingModels):  # type: ignore[misc]
    """One model, asked for by the run's name; it answers as RUN@vN and lists that as its root."""

    def model_name(self, lora_request: object = None) -> str:
        return f"{self.base_model_paths[0].name}@v{self.engine_client.engine.version}"

    async def show_available_models(self) -> Any:
        self.base_model_paths[0].model_path = self.model_name()
        return await super().show_available_models()


class Conversation:
    """vLLM's handlers over one engine."""

    def __init__(self, engine: VllmEngine, run_id: str, places: Places) -> None:
        self._places = places
        client = _Client(engine)
        self._models = _Models(client, [BaseModelPath(run_id, run_id)])
        template = {"chat_template": None, "chat_template_content_format": "auto"}
        renderer = OnlineRenderer(engine.llm.model_config, engine.llm.renderer, request_logger=None, **template)
        self._chat = _Chat(client, self._models, "assistant", online_renderer=renderer, request_logger=None, **template)

    async def models(self) -> dict[str, Any]:
        """The run by its name, with the version that answers now."""
        listed: dict[str, Any] = (await self._models.show_available_models()).model_dump()
        return listed

    async def answer(self, request: ChatCompletionRequest, raw: Request) -> Response:
        """One answer, whole or as a stream; 429 when chat holds its share of the engine already."""
        for name, plain in PLAIN.items():
            if getattr(request, name) not in plain:
                return _refusal(f"{name} is not offered beside a training run", HTTPStatus.BAD_REQUEST)
        if not self._places.take():
            return _refusal(
                f"chat holds its {self._places.count} places in the engine",
                HTTPStatus.TOO_MANY_REQUESTS,
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        with contextlib.ExitStack() as room:
            room.callback(self._places.give)
            seen: set[int] = set()
            _versions.set(seen)
            given = await self._chat.create_chat_completion(request, raw)
            if isinstance(given, ErrorResponse):
                return JSONResponse(given.model_dump(), given.error.code)
            if isinstance(given, AsyncGenerator):
                return StreamingResponse(_until_over(given, seen, room.pop_all()), media_type="text/event-stream")
            return JSONResponse(given.model_dump())


async def _until_over(
    stream: AsyncGenerator[str, None], seen: set[int], room: contextlib.ExitStack
) -> AsyncIterator[str]:
    """The stream, in whatever task sends it; then there is room for another answer."""
    _versions.set(seen)
    with room:
        async with contextlib.aclosing(stream):
            async for piece in stream:
                yield piece


def _refusal(message: str, status: HTTPStatus, headers: dict[str, str] | None = None) -> Response:
    error = create_error_response(message, err_type=status.phrase, status_code=status)
    return JSONResponse(error.model_dump(), status, headers)


def create_chat_app(conversation: Conversation, token: str | None) -> FastAPI:
    """OpenAI's two routes, open to whoever the services are open to."""
    app = FastAPI(title="SePT chat", openapi_url=None)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return await conversation.models()

    @app.post("/v1/chat/completions")
    @with_cancellation  # type: ignore[untyped-decorator]
    async def chat(request: ChatCompletionRequest, raw_request: Request) -> Response:
        try:
            return await conversation.answer(request, raw_request)
        except (VLLMError, ValueError, TypeError, OverflowError, NotImplementedError) as error:  # as vLLM's own app
            problem = create_error_response(error)
            return JSONResponse(problem.model_dump(), problem.error.code)
        except SeptError as error:
            return _refusal(error.message, HTTPStatus.SERVICE_UNAVAILABLE)

    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(AuthMiddleware, token=token)
    return app


class _Server(uvicorn.Server):
    """Leaves signals to the generator."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def open_chat(engine: Engine, run_id: str, *, address: str, places: int, token: str | None) -> AsyncIterator[str]:
    """Answers on `address` ("host:port") within the block; yields the URL. The engine must have started.

    An address that is taken, as by another generator of this machine, is no reason not to train: then there is no chat
    here, and the URL is empty. Without a token the address must be one of loopback, which the settings see to.
    ConfigError for an engine that is not vLLM's.
    """
    if not isinstance(engine, VllmEngine):
        raise ConfigError("generator.chat needs vLLM's engine", hint="set generator.engine to vllm, or chat to nothing")
    host, port = split_address(address)
    app = create_chat_app(Conversation(engine, run_id, Places(places)), token)
    try:
        listener = listen(host, port, setting="generator.chat")
    except UnavailableError as error:
        log.warning("chat_not_offered", reason=error.message, hint=error.hint)
        yield ""
        return
    with listener:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=round(CLOSE_S)
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        log.info("chat_listening", url=listener_url(listener), places=places)
        try:
            yield listener_url(listener)
        finally:
            server.should_exit = True
            await serving
