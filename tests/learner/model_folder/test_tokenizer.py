"""A model folder's tokenizer, and the errors that its files may have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from learner.model_folder.tokenizer import check_tokenizer_files, load_tokenizer, special_tokens, templates_in
from services.errors import ModelError
from tests.support.tokenizers import CHATML, save_byte_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_tokenizer(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_sound_tokenizer_is_loaded(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer("héllo")["input_ids"]) == "héllo"
    assert special_tokens(folder)["eos_token"] == "</s>"
    assert templates_in(folder) == {"default": CHATML}


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("tokenizer.json", b"", r"tokenizer\.json is no tokenizer: Exception"),
        ("tokenizer.json", b"{}", r"tokenizer\.json is no tokenizer: Exception"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": 3}}', r"tokenizer\.json is no tokenizer"),
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json is not JSON: JSONDecodeError"),
        ("tokenizer_config.json", b"\xef\xbb\xbf{}", r"tokenizer_config\.json is not JSON"),
        ("tokenizer_config.json", b"[1]", r"tokenizer_config\.json holds a list"),
        ("tokenizer_config.json", b'{"eos_token": 3}', r"eos_token = 3 in .*tokenizer_config\.json is no text"),
        ("special_tokens_map.json", b"nope", r"special_tokens_map\.json is not JSON"),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja cannot be read: UnicodeDecodeError"),
    ],
)
def test_a_broken_file_is_named_with_the_class_of_its_cause(
    folder: Path, name: str, content: bytes, found: str
) -> None:
    (folder / name).write_bytes(content)
    for read in (check_tokenizer_files, load_tokenizer):
        with pytest.raises(ModelError, match=found) as caught:
            read(folder)
        assert caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "NoSuchTokenizer", "auto_map": {"AutoTokenizer": ["code.NoSuch", None]}},
        {"eos_token": {"no_content": 1}},
        {"added_tokens_decoder": {"x": "y"}},
        {"added_tokens_decoder": []},
        {"model_max_length": "long", "extra_special_tokens": 5},
    ],
)
def test_what_transformers_cannot_load_is_one_refusal(folder: Path, changes: dict[str, Any]) -> None:
    change(folder / "tokenizer_config.json", **changes)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(folder)
    assert str(folder) in caught.value.message
    assert caught.value.hint


def test_a_folder_without_a_vocabulary_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"vocabulary|cannot be loaded"):
        load_tokenizer(folder)


def test_code_is_never_run_and_nobody_is_asked(folder: Path) -> None:
    (folder / "code.py").write_text("raise SystemExit('it ran')")
    (folder / "tokenizer.json").unlink()
    change(folder / "tokenizer_config.json", tokenizer_class="X", auto_map={"AutoTokenizer": ["code.X", None]})
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(folder)


def test_templates_may_be_several_files_or_a_list_of_names(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("\ufeffT")
    assert templates_in(folder) == {"default": CHATML, "tool_use": "T"}
    shutil.rmtree(folder / "additional_chat_templates")
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", chat_template=[{"name": "rag", "template": "R"}])
    assert templates_in(folder) == {"rag": "R"}
    assert load_tokenizer(folder).chat_template == {"rag": "R"}


@pytest.mark.parametrize("value", [5, [5], [{"name": "a"}], [{"name": "a", "template": 1}], {"a": None}])
def test_a_template_that_is_no_text_is_refused(folder: Path, value: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", chat_template=value)
    with pytest.raises(ModelError, match=r"chat_template in .*tokenizer_config\.json"):
        load_tokenizer(folder)
