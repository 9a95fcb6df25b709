"""Watching a run from outside, by its status alone: what the tests under compose and on Ray share."""

from __future__ import annotations

import time
from collections.abc import Callable

from services.contracts import StatusSnapshot

LOOK_EVERY_S = 0.5


class Watched:
    """A run somewhere that can be asked for its status."""

    def status(self) -> StatusSnapshot | None:
        """The run's status; None while the services or Redis are away."""
        raise NotImplementedError

    def last_words(self) -> str:
        """What explains a run that does not get there."""
        return ""

    def until(self, what: str, condition: Callable[[StatusSnapshot], bool], within_s: float) -> float:
        """Seconds until the status satisfies the condition."""
        started = time.monotonic()
        last: StatusSnapshot | None = None
        while (waited := time.monotonic() - started) < within_s:
            last = self.status() or last
            if last is not None and condition(last):
                return waited
            time.sleep(LOOK_EVERY_S)
        raise AssertionError(f"no {what} within {within_s:.0f} s; last status: {last}\n{self.last_words()}")


def alive(status: StatusSnapshot) -> int:
    """Generators that work."""
    return sum(not generator.lost for generator in status.generators)
