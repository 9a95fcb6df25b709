"""What a record says of each token: its characters and its log-probability, a byte for each."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from learner.monitoring.token_record import STEPS_PER_NAT, token_fields


def test_lengths_are_in_characters_and_probabilities_are_right_within_3_percent() -> None:
    probabilities = np.array([0.9, 1.0, 0.31, 0.02], np.float32)
    found = token_fields("né 😀", ["n", "é", "", " 😀"], np.log(probabilities))
    assert list(base64.b64decode(found["token_lengths"])) == [1, 1, 0, 2]
    nats = np.frombuffer(base64.b64decode(found["token_log_probs"]), np.uint8) / STEPS_PER_NAT
    np.testing.assert_allclose(np.exp(-nats), probabilities, rtol=0.032)


def test_what_is_hardly_possible_is_recorded_as_the_lowest_number() -> None:
    found = token_fields("a", ["a"], np.array([-1000.0], np.float32))
    assert base64.b64decode(found["token_log_probs"]) == b"\xff"


def test_a_character_that_the_limit_cut_in_two_belongs_to_the_last_token() -> None:
    found = token_fields("so \ufffd", ["so", " ", ""], np.zeros(3, np.float32))
    assert list(base64.b64decode(found["token_lengths"])) == [2, 1, 1]


@pytest.mark.parametrize(
    ("text", "pieces", "log_probs"),
    [
        ("ab", ["a", "c"], [0.0, 0.0]),
        ("ab", ["a", "b"], [0.0]),
        ("ab", [], [0.0, 0.0]),
        ("ab", ["a", "b"], [0.0, float("nan")]),
        ("x" * 256, ["x" * 256], [0.0]),
    ],
)
def test_nothing_is_recorded_that_would_be_wrong(text: str, pieces: list[str], log_probs: list[float]) -> None:
    assert token_fields(text, pieces, np.array(log_probs, np.float32)) == {}
