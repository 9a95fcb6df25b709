"""Architectures that packed training would get wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GraniteConfig

from learner.model.model_loading import load_model
from services.errors import ModelError
from tests.support import tiny_models


def test_a_model_whose_logits_are_scaled_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path, GraniteConfig(**(tiny_models.SHAPE | {"logits_scaling": 2.0})))
    with pytest.raises(ModelError, match="differ from its own"):
        load_model(str(folder), device="cpu")
