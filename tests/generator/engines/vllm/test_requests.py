"""How a task is sampled is what vLLM is told."""

from __future__ import annotations

import pytest

from tests.support.stream_builders import make_task


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_vllm_samples_as_the_task_says() -> None:
    from generator.engines.vllm.requests import sampling_params  # vLLM's import warns, and takes seconds

    params = sampling_params(make_task(0, temperature=1.6, top_p=0.8, top_k=20, min_p=0.05, stop_token_ids=(7,)))
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.6, 0.8, 20, 0.05)
    assert (params.stop_token_ids, params.ignore_eos) == ([7], True)
    off = sampling_params(make_task(0))
    assert (off.top_p, off.top_k, off.min_p) == (1.0, 0, 0.0)
