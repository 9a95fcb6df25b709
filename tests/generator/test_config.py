"""Where a generator's settings end: the last value that is taken, and the first that is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from generator.config import GeneratorConfig

TINY = math.ulp(0.0)


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("count", [0, 100], [-1]),
        ("engine", ["vllm", "scripted"], ["sglang"]),
        ("dtype", ["auto", "float32", "bfloat16", "float16"], ["int8"]),
        ("max_in_flight", [1], [0]),
        ("memory_fraction", [TINY, 1], [0, 1.0001]),
        ("cpu_cache_gib", [TINY], [0]),
        ("tensor_parallel", [1], [0]),
        ("chat", ["", "127.0.0.1:0", "[::1]:8000", "host:65535"], [":80", "host", "host:", "host:123456", "80"]),
    ],
)
def test_the_bounds_of_a_setting(name: str, taken: list[Any], refused: list[Any]) -> None:
    for value in taken:
        GeneratorConfig.model_validate({name: value})
    for value in refused:
        with pytest.raises(ValidationError, match=name):
            GeneratorConfig.model_validate({name: value})
