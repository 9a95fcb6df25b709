"""Reads a model folder's tokenizer, and checks its files without transformers. Every error names the file at fault."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner.model_folder.files import read_json
from services.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
_JSON_FILES = (CONFIG_FILE, SPECIAL_TOKENS_FILE, "added_tokens.json", "vocab.json")
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json", "*.py")
"""Files of which a tokenizer has one at least; the last: one with code of its own."""
_ENDS_OF_PROGRAM = (KeyboardInterrupt, SystemExit, GeneratorExit)

AGAIN = "copy or download the model again, with its tokenizer"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the folder; ModelError with the file and the class of the cause when it cannot be read."""
    check_tokenizer_files(folder)
    from transformers import AutoTokenizer

    try:
        # Without trust_remote_code transformers asks on the terminal.
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        vocabulary, added = len(tokenizer.get_vocab()), len(tokenizer.added_tokens_decoder)
    except BaseException as error:  # transformers raises what it likes, and a panic in Rust is no Exception
        if isinstance(error, _ENDS_OF_PROGRAM):
            raise
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded: {type(error).__name__}: {_first_line(error)}", hint=AGAIN
        ) from error
    if vocabulary <= added:  # transformers makes an empty tokenizer of a folder without a vocabulary
        raise ModelError(f"{folder} has no vocabulary, such as tokenizer.json", hint=AGAIN)
    return tokenizer


def check_tokenizer_files(folder: Path) -> None:
    """ModelError for a file of the tokenizer that cannot be parsed, or where there is none; without transformers."""
    if not any(path.is_file() for pattern in _VOCABULARIES for path in folder.glob(pattern)):
        raise ModelError(f"{folder} has no vocabulary, such as tokenizer.json", hint=AGAIN)
    for name in _JSON_FILES:
        read_json(folder / name)
    path = folder / "tokenizer.json"
    if path.exists():
        import tokenizers

        try:
            tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:
            if isinstance(error, _ENDS_OF_PROGRAM):
                raise
            raise ModelError(
                f"{path} is no tokenizer: {type(error).__name__}: {_first_line(error)}", hint=AGAIN
            ) from error
    special_tokens(folder)
    templates_in(folder)


def special_tokens(folder: Path) -> dict[str, str]:
    """ "eos_token" -> its text, and so on: what templates may name."""
    found: dict[str, str] = {}
    for path in (folder / SPECIAL_TOKENS_FILE, folder / CONFIG_FILE):
        for key, value in read_json(path).items():
            if key.endswith("_token") and value is not None and not isinstance(value, bool):
                text = value.get("content") if isinstance(value, dict) else value
                if not isinstance(text, str):
                    raise ModelError(f"{key} = {value!r:.80} in {path} is no text", hint=AGAIN)
                found[key] = text
    return found


def templates_in(folder: Path) -> dict[str, str]:
    """Name -> text of the folder's chat templates; the one that is used unless another is named is "default"."""
    found: dict[str, str] = {}
    for path in [*sorted((folder / TEMPLATE_FOLDER).glob("*.jinja")), folder / TEMPLATE_FILE]:
        if path.is_file():
            name = "default" if path.name == TEMPLATE_FILE else path.stem
            found[name] = _template_text(path)
    return found or named_templates(read_json(folder / CONFIG_FILE).get("chat_template"), folder / CONFIG_FILE)


def named_templates(value: Any, where: Path) -> dict[str, str]:
    """The templates of a tokenizer's `chat_template`: one text, or several with names."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, Mapping):
        value = [{"name": name, "template": text} for name, text in value.items()]
    try:
        pairs = [(one["name"], one["template"]) for one in value]
    except (TypeError, KeyError) as error:
        raise ModelError(
            f"chat_template in {where} is neither text nor a list of name and template: {value!r:.80}", hint=AGAIN
        ) from error
    if not all(isinstance(name, str) and isinstance(text, str) for name, text in pairs):
        raise ModelError(f"chat_template in {where} has a name or a template that is no text", hint=AGAIN)
    return dict(pairs)


def template_place(folder: Path) -> Path:
    """The file that the folder's own template stands in."""
    return folder / (TEMPLATE_FILE if (folder / TEMPLATE_FILE).is_file() else CONFIG_FILE)


def _template_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {type(error).__name__}: {error}", hint=AGAIN) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
