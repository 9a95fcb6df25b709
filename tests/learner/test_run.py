"""How a learner and an evaluator end."""

from __future__ import annotations

import signal

import pytest

from learner.run import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_to_stop_and_the_second_would_end_the_process(
    number: signal.Signals, signal_handlers: None
) -> None:
    asked: list[bool] = []
    stop_on_signals(lambda: asked.append(True))
    signal.raise_signal(number)
    assert asked == [True]
    assert {signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)} == {signal.SIG_DFL}
