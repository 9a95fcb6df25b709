"""Where the settings that all parts share end: the last value that is taken, and the first that is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from services.config import DeadlinesConfig, RedisConfig, RunConfig, Section, ServicesConfig, WeightSyncConfig, listed

TINY = math.ulp(0.0)


@pytest.mark.parametrize(
    ("section", "name", "taken", "refused"),
    [
        (RunConfig, "seed", [0, 2**40], [-1, 0.5, "x"]),
        (RunConfig, "trackers", ["", "wandb", "tensorboard, mlflow", ["wandb"]], ["wandb,other", 3]),
        (RedisConfig, "lease_s", [TINY, 1e9], [0, -1, math.inf, math.nan]),
        (ServicesConfig, "port", [0, 65535], [-1, 65536]),
        (WeightSyncConfig, "canary_prompts", [0, 64], [-1, 65]),
        *(
            (DeadlinesConfig, f"{name}_s", [TINY], [0, math.inf])
            for name in ("startup", "rollouts", "weights", "drain")
        ),
    ],
)
def test_the_bounds_of_a_setting(section: type[Section], name: str, taken: list[Any], refused: list[Any]) -> None:
    for value in taken:
        section.model_validate({name: value})
    for value in refused:
        with pytest.raises(ValidationError, match=name):
            section.model_validate({name: value})


def test_a_section_is_closed_and_does_not_change() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        RunConfig.model_validate({"sed": 1})
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().seed = 3  # type: ignore[misc]


def test_every_setting_has_its_help_text() -> None:
    for section in (RunConfig, RedisConfig, ServicesConfig, WeightSyncConfig, DeadlinesConfig):
        assert all(field.description for field in section.model_fields.values())


def test_a_text_with_commas_is_a_list() -> None:
    assert listed(" a, b ,,c ") == ["a", "b", "c"]
    assert listed(("a", "b")) == ("a", "b")
