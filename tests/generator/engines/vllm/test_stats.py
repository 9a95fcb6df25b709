"""vLLM's statistics are left out for each token, and kept for what happens to a request."""

from __future__ import annotations

import time

import pytest

from generator.engines.base import Completion

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


def test_preemptions_are_counted_and_tokens_are_not() -> None:
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreRequest, FinishReason
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
    from vllm.v1.metrics.stats import IterationStats

    from generator.engines.vllm.requests import completion
    from generator.engines.vllm.stats import SchedulerLog, count_only_preemptions

    processor = OutputProcessor(None, log_stats=True)
    count_only_preemptions(processor)
    params = SamplingParams(max_tokens=3, detokenize=False)
    request = EngineCoreRequest("a", [1, 2], None, params, None, time.time(), None, None, None, external_req_id="a")
    collector = RequestOutputCollector(params.output_kind, "a")
    processor.add_request(request, None, queue=collector)
    seen = SchedulerLog()
    preempted = EngineCoreEvent.new_event(EngineCoreEventType.PREEMPTED)
    for token, events, reason in ((5, None, None), (6, [preempted], None), (7, None, FinishReason.LENGTH)):
        iteration = IterationStats()
        output = EngineCoreOutput("a", [token], events=events, finish_reason=reason)
        processor.process_outputs([output], time.monotonic(), iteration)
        seen.record(None, iteration)
        assert iteration.num_generation_tokens == 0
        assert iteration.inter_token_latencies_iter == []
    assert seen.preemptions == 1
    result = collector.get_nowait()
    assert result is not None
    done = completion(result.outputs[0])
    assert isinstance(done, Completion)
    assert (done.response_tokens[-1], done.finish_reason) == (7, "length")
