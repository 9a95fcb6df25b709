"""A manifest and a small file travel as one body, and are what they were; everything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import ContractError
from services.weights.bundle import LENGTH, bundle, unbundle


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_both_come_back_as_they_were(manifest: bytes, change: bytes) -> None:
    assert unbundle(bundle(manifest, change)) == (manifest, change)


def test_the_length_of_the_manifest_comes_first_as_eight_bytes() -> None:
    assert bundle(b"ab", b"c") == bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"abc"


@pytest.mark.parametrize(
    "body",
    [b"", b"1234567", LENGTH.pack(1), LENGTH.pack(3) + b"ab", LENGTH.pack((1 << 64) - 1) + b"ab"],
)
def test_a_body_that_is_too_short_for_what_it_says_is_refused(body: bytes) -> None:
    with pytest.raises(ContractError, match=f"an answer of {len(body)} bytes cannot hold a manifest"):
        unbundle(body)
