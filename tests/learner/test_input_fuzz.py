"""Whatever stands in data files, templates and model folders: prompts come out, or one SeptError with a hint, soon."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learner.config import DataConfig, LearnerSettings
from learner.data.prompts import load_prompts, template_of
from learner.data.stop_tokens import stop_token_ids
from learner.input_checks import check_inputs
from learner.model_folder.files import model_files
from learner.model_folder.tokenizer import load_tokenizer
from services.errors import SeptError
from tests.support import tiny_models
from tests.support.tokenizers import CHATML, byte_tokenizer, save_byte_tokenizer

WITHIN_S = 5.0
FUZZ = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
TOKENIZER = byte_tokenizer(CHATML)


@contextmanager
def prompts_or_a_refusal() -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    except SeptError as error:
        assert error.message
        assert error.hint
    assert time.monotonic() - started < WITHIN_S


TEXTS = st.one_of(
    st.text(),
    st.sampled_from(
        ["1+1?", "<|im_end|>", "\ud83d", "a\0", "\ufdd0", "\ufeff", "[{", '[{"role": "user"}]', "{'a': 1}"]
    ),
)
VALUES = st.recursive(
    st.one_of(TEXTS, st.none(), st.booleans(), st.integers(), st.floats()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "system", "tool", 3]),
            "from": st.sampled_from(["human", "gpt", None]),
            "content": VALUES,
            "value": TEXTS,
        },
    ),
    max_size=4,
)
ROWS = st.one_of(
    VALUES,
    st.fixed_dictionaries({"question": TEXTS}, optional={"answer": VALUES, "solution": VALUES, "reward_model": VALUES}),
    st.fixed_dictionaries({"prompt": st.one_of(MESSAGES, MESSAGES.map(json.dumps), MESSAGES.map(str))}),
    st.fixed_dictionaries({"messages": MESSAGES}, optional={"answer": VALUES}),
    st.fixed_dictionaries({"conversations": MESSAGES}),
)


def as_lines(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def as_csv(rows: list[Any]) -> bytes:
    return b"question,answer\n" + "\n".join(str(row) for row in rows).encode(errors="surrogatepass")


def as_parquet(rows: list[Any]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"question": [json.dumps(row) for row in rows]}), sink)
    return sink.getvalue()


FORMATS: dict[str, Callable[[list[Any]], bytes]] = {
    ".jsonl": as_lines,
    ".json": lambda rows: json.dumps(rows).encode(),
    ".csv": as_csv,
    ".parquet": as_parquet,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content as it is, cut short, with bytes changed, or something else altogether."""
    how = draw(st.sampled_from(["whole", "cut", "changed", "other"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if how == "cut":
        return content[:place]
    if how == "changed":
        return content[:place] + draw(st.binary(min_size=1, max_size=4)) + content[place + 1 :]
    return draw(st.binary(max_size=40)) if how == "other" else content


@FUZZ
@given(
    data=st.data(),
    rows=st.lists(ROWS, max_size=4),
    suffix=st.sampled_from(sorted(FORMATS)),
    packed=st.sampled_from(sorted(PACKERS)),
    options=st.sampled_from(["", "?bad_rows=leave_out", "?question=prompt", "?answer=a.b", "?x=y"]),
    template=st.sampled_from(["auto", "none"]),
)
def test_any_data_file(
    data: st.DataObject, rows: list[Any], suffix: str, packed: str, options: str, template: str
) -> None:
    content = data.draw(damaged(PACKERS[packed](data.draw(damaged(FORMATS[suffix](rows))))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"rows{suffix}{packed}")
        path.write_bytes(content)
        with prompts_or_a_refusal():
            assert load_prompts(DataConfig(path=f"{path}{options}", chat_template=template), TOKENIZER)


PIECES = st.sampled_from(
    [
        *("{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ messages[0].content }}", "{{ m.role }}"),
        *("{% if add_generation_prompt %}", "{% endif %}", "{% else %}", "<|im_start|>", "{{ bos_token }}"),
        *("{{ raise_exception('no') }}", "{{ strftime_now('%d') }}", "{{ 1 // 0 }}", "{{ 'a' * 999999999 }}"),
        *("{% set m = messages[9] %}", "{{ m | tojson }}", "{% include 'a' %}", "{% macro f() %}", "{{ f() }}"),
        *(
            "{% endmacro %}",
            "{% generation %}",
            "{% endgeneration %}",
            "{% break %}",
            "{{ x.y.z }}",
            "{{ [] | first }}",
        ),
        *("{{ '%s' | format }}", "{{", "}}", "{%", "{#"),
    ]
)


@FUZZ
@given(st.one_of(st.lists(PIECES, max_size=8).map("".join), st.text(max_size=30).map(lambda text: "{" + text)))
def test_any_template(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        path.write_text('{"question": "1+1?"}')
        with prompts_or_a_refusal():
            assert load_prompts(DataConfig(path=str(path), chat_template=text), TOKENIZER)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_byte_tokenizer(tiny_models.save(tmp_path_factory.mktemp("saved")))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    return folder


NAMES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "model.safetensors",
)  # fmt: skip
KEYS = st.sampled_from(
    ["eos_token_id", "eos_token", "chat_template", "model_type", "tokenizer_class", "auto_map", "added_tokens_decoder",
     "model_max_length", "extra_special_tokens", "text_config", "model", "added_tokens", "normalizer"]
)  # fmt: skip


@settings(FUZZ, max_examples=150)
@given(
    data=st.data(), name=st.sampled_from(NAMES), key=KEYS, value=VALUES, how=st.sampled_from(["bytes", "key", "gone"])
)
def test_any_model_folder(saved: Path, data: st.DataObject, name: str, key: str, value: Any, how: str) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(shutil.copytree(saved, Path(parent, "model")))
        path = folder / name
        if how == "gone":
            path.unlink()
        elif how == "key" and name.endswith(".json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        else:
            path.write_bytes(data.draw(damaged(path.read_bytes())))
        rows = Path(parent, "rows.jsonl")
        rows.write_text('{"question": "1+1?"}')
        config = DataConfig(path=str(rows))
        with prompts_or_a_refusal():
            check_inputs(LearnerSettings.model_validate({"model": {"path": str(folder)}, "data": config.model_dump()}))
        with prompts_or_a_refusal():
            tokenizer = load_tokenizer(folder)
            assert load_prompts(config, tokenizer)
            stop_token_ids(folder, tokenizer, template_of(config, tokenizer))
            assert model_files(folder)
