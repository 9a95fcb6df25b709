"""What is shown on a GPU and nowhere else. `make test-gpu` runs it; what a test needs and lacks is its reason to skip.

The learner's tests need torch and transformers; vLLM's tests skip without vLLM, those of several ranks with one GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist


@pytest.fixture(autouse=True)
def gpu() -> Iterator[torch.device]:
    """The device; the memory and the process group that a test leaves behind are given back."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    yield torch.device("cuda", 0)
    if dist.is_initialized():
        dist.destroy_process_group()
    torch.cuda.empty_cache()
