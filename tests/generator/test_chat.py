"""Chat with the real engine while it works on tasks: answers name their version, and chat keeps to its share."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from generator.config import GeneratorConfig
from generator.engines.create import create_engine
from generator.engines.scripted import ScriptedEngine
from services.contracts import Task
from services.errors import ConfigError
from services.tensors import read_safetensors
from tests.support.engine_rig import FIRST_VERSION, Rig
from tests.support.vllm_models import VOCABULARY, write_tiny_model

# vLLM's own imports warn of deprecations
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"), pytest.mark.vllm, pytest.mark.filterwarnings("ignore")
]  # fmt: skip

TOKEN = "hush"
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
HELLO = {"messages": [{"role": "user", "content": "0123"}]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder)
    write_tokenizer(folder)
    config = GeneratorConfig(max_in_flight=8, cpu_cache_gib=0.25, chat="127.0.0.1:0")
    engine = await asyncio.to_thread(create_engine, config, max_model_len=3000, seed=1)
    await engine.start(folder, FIRST_VERSION)
    yield Rig(engine, folder, FIRST_VERSION, read_safetensors(folder / "model.safetensors"))
    await engine.stop()
    gc.collect()  # vLLM leaves its sockets' context to the collector, which would warn during another test


def write_tokenizer(folder: Path) -> None:
    """One token per character."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    letters = "0123456789" + "".join(chr(0x400 + number) for number in range(VOCABULARY - 10))
    tokenizer = Tokenizer(WordLevel({letter: number for number, letter in enumerate(letters)}, unk_token=letters[-1]))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    untyped: Any = PreTrainedTokenizerFast
    untyped(tokenizer_object=tokenizer, chat_template=TEMPLATE).save_pretrained(folder)


@asynccontextmanager
async def chat(rig: Rig, *, slots: int = 2, token: str | None = TOKEN) -> AsyncIterator[httpx.AsyncClient]:
    from generator.chat import open_chat

    async with open_chat(rig.engine, "run", address="127.0.0.1:0", slots=slots, token=TOKEN) as url:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            yield http


async def ask(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=HELLO | {"max_tokens": 20} | fields)


async def pieces(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


async def test_an_answer_names_its_version(rig: Rig) -> None:
    async with chat(rig) as http:
        (listed,) = (await http.get("/v1/models")).raise_for_status().json()["data"]
        assert (listed["id"], listed["root"]) == ("run", f"run@v{rig.version}")
        answer = (await ask(http, model="run", temperature=0)).raise_for_status().json()
        assert (answer["model"], answer["system_fingerprint"]) == (f"run@v{rig.version}", f"v{rig.version}")
        assert len(answer["choices"][0]["message"]["content"]) == answer["usage"]["completion_tokens"] == 20
        assert (await ask(http, model="another")).status_code == 404


async def test_an_answer_that_spans_an_update_names_both_versions_and_loses_nothing(rig: Rig) -> None:
    async with chat(rig) as http:
        before, received = rig.version, []
        fields = HELLO | {"max_tokens": 600, "stream": True, "ignore_eos": True}
        async with http.stream("POST", "/v1/chat/completions", json=fields) as answer:
            async for piece in pieces(answer):
                received.append(piece)
                if len(received) == 5:
                    await rig.update()
        assert sum(len(piece["choices"][0]["delta"].get("content") or "") for piece in received) == 600
        assert {piece["model"] for piece in received} == {f"run@v{before}"}
        assert received[-1]["system_fingerprint"] == f"v{before}-v{before + 1}"
        assert (await ask(http)).json()["model"] == f"run@v{rig.version}"


async def test_requests_beyond_the_share_are_rejected_and_tasks_continue(rig: Rig) -> None:
    task = Task(task_id="t", round=0, position=0, prompt_tokens=[1, 2], temperature=1.0, max_response_tokens=50,
                min_weight_version=0)  # fmt: skip
    async with chat(rig, slots=1) as http:
        fields = HELLO | {"max_tokens": 2000, "stream": True, "ignore_eos": True}
        async with http.stream("POST", "/v1/chat/completions", json=fields) as answer:
            await anext(pieces(answer))
            rejected = await ask(http)
            assert (rejected.status_code, rejected.headers["Retry-After"]) == (429, "1")
            assert len((await rig.engine.generate(task, 0)).response_tokens) == 50
        await rig.until(lambda: rig.engine.load().running == 0)  # a closed connection aborts the request
        assert (await ask(http)).status_code == 200


@pytest.mark.parametrize("field", [{"n": 2}, {"seed": 1}, {"use_beam_search": True}, {"prompt_logprobs": 1}])
async def test_fields_that_cost_the_run_more_than_one_request_are_rejected(rig: Rig, field: dict[str, Any]) -> None:
    async with chat(rig) as http:
        answer = await ask(http, **field)
    assert answer.status_code == 400
    assert next(iter(field)) in answer.json()["error"]["message"]


async def test_requests_without_the_token_are_rejected(rig: Rig) -> None:
    async with chat(rig, token=None) as http:
        assert (await ask(http)).status_code == 401
        assert (await http.get("/v1/models")).status_code == 401


async def test_a_generator_runs_without_chat_when_the_port_is_in_use(rig: Rig) -> None:
    from generator.chat import open_chat

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with open_chat(rig.engine, "run", address=address, slots=1, token=TOKEN) as url:
            assert url == ""


async def test_a_scripted_engine_offers_no_chat() -> None:
    from generator.chat import open_chat

    with pytest.raises(ConfigError, match="vLLM's engine"):
        async with open_chat(ScriptedEngine(), "run", address="127.0.0.1:0", slots=1, token=None):
            pass
