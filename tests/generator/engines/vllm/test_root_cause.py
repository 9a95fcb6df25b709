"""An engine that does not start says why, in one sentence and with the right kind of error."""

from __future__ import annotations

import json
import logging
import logging.config
from pathlib import Path

import pydantic
import pytest

from services.errors import ConfigError, EngineError, ModelError, SeptError

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


def raised(message: str, *, behind: str = "") -> Exception:
    try:
        if not behind:
            raise AssertionError(message)
        try:
            raise AssertionError(message)
        except AssertionError as error:
            raise RuntimeError(behind) from error
    except Exception as error:
        return error


def test_the_cause_is_the_first_error() -> None:
    from generator.engines.vllm.root_cause import cause_of

    error = raised("no window in some layers", behind="Engine core initialization failed")
    assert str(cause_of(error)) == "AssertionError: no window in some layers"


def test_what_pydantic_writes_around_an_error_is_left_out() -> None:
    from generator.engines.vllm.root_cause import cause_of

    class Limited(pydantic.BaseModel):
        length: int

        @pydantic.field_validator("length")
        @classmethod
        def fits(cls, value: int) -> int:
            raise ValueError("280 is greater than 128")

    with pytest.raises(pydantic.ValidationError) as caught:
        Limited(length=280)
    assert cause_of(caught.value) == ("ValueError", "280 is greater than 128")


def test_the_first_error_in_any_process_is_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes apply the file that `logging_config` writes; here its handlers log for one logger of the test."""
    from generator.engines.vllm.root_cause import logging_config, start_error

    path = logging_config(tmp_path).pylogging_config_file
    assert path is not None
    config = json.loads(Path(path).read_text())
    config["loggers"] = {"sept_test_engine": config["loggers"]["vllm"]}
    logging.config.dictConfig(config | {"incremental": False, "disable_existing_loggers": False})
    engine = logging.getLogger("sept_test_engine")
    engine.error("an error without an exception")
    for message in ("head size 576 is not supported", "workers have died"):
        engine.error("failed to start", exc_info=raised(message))
    error = start_error(raised("see above"), "/models/x", tmp_path, cpu=True)
    assert isinstance(error, ModelError)
    assert error.message == "vLLM cannot serve /models/x: AssertionError: head size 576 is not supported"
    for handler in list(engine.handlers):
        engine.removeHandler(handler)


@pytest.mark.parametrize(
    ("message", "cpu", "kind"),
    [
        ("To serve at least one request 2.0 GiB KV cache is needed, which is larger than 0.2 GiB", True, ConfigError),
        ("No available memory for the cache blocks", False, EngineError),
        ("CUDA out of memory. Tried to allocate 20 MiB", False, EngineError),
        ("Free memory on device (10/80 GiB) on startup is less than desired", False, EngineError),
        ("Model architectures ['Foo'] are not supported", True, ModelError),
    ],
)
def test_only_a_lack_that_may_pass_is_worth_another_start(
    tmp_path: Path, message: str, cpu: bool, kind: type[SeptError]
) -> None:
    from generator.engines.vllm.root_cause import start_error

    error = start_error(ValueError(message), "/models/x", tmp_path, cpu=cpu)
    assert type(error) is kind
    assert message in error.message
    assert error.hint
