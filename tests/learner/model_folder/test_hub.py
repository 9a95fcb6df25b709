"""What the hub says about a name."""

from __future__ import annotations

import time

import huggingface_hub
import pytest

from learner.model_folder.hub import is_on_hub
from services.errors import UnavailableError
from tests.support.hub import hub_away, hub_with


@pytest.mark.parametrize(
    ("name", "there"), [("org/model", True), ("org/other", False), ("a/b/c", False), ("-no-name-", False)]
)
def test_a_hub_has_a_model_or_not(name: str, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_with("models/org/model") as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        assert is_on_hub("model", name) == there
        assert not is_on_hub("dataset", name)


def test_a_hub_that_is_away_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub_away())
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it was to be asked again"))
    with pytest.raises(
        UnavailableError, match=r"org/model is not on this machine.*the Hugging Face hub does not answer"
    ):
        is_on_hub("model", "org/model")
