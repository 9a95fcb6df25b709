"""Fixtures of tests that run a whole learner in pytest's own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture
def one_rank_group() -> Iterator[None]:
    """A model that computes in bf16 on one rank makes a process group of its own, which ends with the test."""
    yield
    dist.destroy_process_group()
