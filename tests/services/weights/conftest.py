"""A store of weight versions that is still empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.weights.publisher import WeightPublisher
from tests.support.endpoint import open_store


@pytest.fixture
def store(tmp_path: Path) -> WeightPublisher:
    return open_store(tmp_path / "weights")
