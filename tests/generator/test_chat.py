"""People talk to the real engine while it works: whose weights answered is said, and the share is kept."""

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
from generator.engines.base import create_engine
from generator.engines.scripted import ScriptedEngine
from services.contracts import Task
from services.errors import ConfigError
from services.weights.tensors import read_safetensors
from tests.generator.engines.test_engine_contract import FIRST_VERSION, Rig
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
    config = GeneratorConfig(max_model_len=3000, max_in_flight=8, cpu_cache_gib=0.25, chat="127.0.0.1:0")
    engine = await asyncio.to_thread(create_engine, config, seed=1)
    await engine.start(folder, FIRST_VERSION)
    yield Rig(engine, folder, FIRST_VERSION, read_safetensors(folder / "model.safetensors"))
    await engine.stop()
    gc.collect()  # vLLM leaves its sockets' context to the collector, which would complain during another test


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
async def chat(rig: Rig, *, places: int = 2, token: str | None = TOKEN) -> AsyncIterator[httpx.AsyncClient]:
    from generator.chat import open_chat

    async with open_chat(rig.engine, "run", address="127.0.0.1:0", places=places, token=TOKEN) as url:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            yield http


async def ask(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=HELLO | {"max_tokens": 20} | fields)


async def pieces(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


async def test_an_answer_names_the_version_that_gave_it(rig: Rig) -> None:
    async with chat(rig) as http:
        (listed,) = (await http.get("/v1/models")).raise_for_status().json()["data"]
        assert (listed["id"], listed["root"]) == ("run", f"run@v{rig.version}")
        answer = (await ask(http, model="run", temperature=0)).raise_for_status().json()
        assert (answer["model"], answer["system_fingerprint"]) == (f"run@v{rig.version}", f"v{rig.version}")
        assert len(answer["choices"][0]["message"]["content"]) == answer["usage"]["completion_tokens"] == 20
        assert (await ask(http, model="another")).status_code == 404


async def test_an_answer_that_spans_an_update_names_both_versions_and_loses_nothing(rig: Rig) -> None:
    async with chat(rig) as http:
        before, said = rig.version, []
        fields = HELLO | {"max_tokens": 600, "stream": True, "ignore_eos": True}
        async with http.stream("POST", "/v1/chat/completions", json=fields) as answer:
            async for piece in pieces(answer):
                said.append(piece)
                if len(said) == 5:
                    await rig.update()
        assert sum(len(piece["choices"][0]["delta"].get("content") or "") for piece in said) == 600
        assert {piece["model"] for piece in said} == {f"run@v{before}"}
        assert said[-1]["system_fingerprint"] == f"v{before}-v{before + 1}"
        assert (await ask(http)).json()["model"] == f"run@v{rig.version}"


async def test_what_exceeds_the_share_is_sent_away_and_tasks_go_on(rig: Rig) -> None:
    task = Task(task_id="t", round=0, index=0, prompt_tokens=[1, 2], temperature=1.0, max_response_tokens=50,
                min_weight_version=0)  # fmt: skip
    async with chat(rig, places=1) as http:
        fields = HELLO | {"max_tokens": 2000, "stream": True, "ignore_eos": True}
        async with http.stream("POST", "/v1/chat/completions", json=fields) as answer:
            await anext(pieces(answer))
            refused = await ask(http)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
            assert len((await rig.engine.generate(task, 0)).response_tokens) == 50
        await rig.until(lambda: rig.engine.load().running == 0)  # whoever hangs up is no longer answered
        assert (await ask(http)).status_code == 200


@pytest.mark.parametrize("field", [{"n": 2}, {"seed": 1}, {"use_beam_search": True}, {"prompt_logprobs": 1}])
async def test_what_would_cost_the_run_more_than_an_answer_is_refused(rig: Rig, field: dict[str, Any]) -> None:
    async with chat(rig) as http:
        answer = await ask(http, **field)
    assert answer.status_code == 400
    assert next(iter(field)) in answer.json()["error"]["message"]


async def test_nobody_is_answered_without_the_token(rig: Rig) -> None:
    async with chat(rig, token=None) as http:
        assert (await ask(http)).status_code == 401
        assert (await http.get("/v1/models")).status_code == 401


async def test_a_port_that_is_taken_leaves_the_generator_without_chat_and_whole(rig: Rig) -> None:
    from generator.chat import open_chat

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with open_chat(rig.engine, "run", address=address, places=1, token=TOKEN) as url:
            assert url == ""


async def test_a_scripted_engine_has_nothing_to_say() -> None:
    from generator.chat import open_chat

    with pytest.raises(ConfigError, match="vLLM's engine"):
        async with open_chat(ScriptedEngine(), "run", address="127.0.0.1:0", places=1, token=None):
            pass
