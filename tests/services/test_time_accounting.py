import pytest

from services.time_accounting import Rate, StateClock


class Hands:
    """A clock whose hands the test moves."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def test_every_second_belongs_to_exactly_one_state() -> None:
    hands = Hands()
    clock = StateClock("starting", now=hands)
    hands.at = 2.0
    clock.enter("training")
    hands.at = 7.0
    with clock.during("publishing"):
        hands.at = 8.0
    hands.at = 10.0
    assert clock.seconds() == {"starting": 2.0, "training": 7.0, "publishing": 1.0}
    assert sum(clock.shares().values()) == pytest.approx(1.0)
    assert clock.state == "training"


def test_a_failing_block_returns_to_the_state_before() -> None:
    clock = StateClock("training", now=Hands())
    with pytest.raises(KeyError), clock.during("publishing"):
        raise KeyError
    assert clock.state == "training"


def test_a_new_clock_gives_all_to_its_state() -> None:
    assert StateClock("starting", now=Hands()).shares() == {"starting": 1.0}


def test_rate_forgets_what_is_older_than_its_window() -> None:
    hands = Hands()
    rate = Rate(window_s=10.0, now=hands)
    rate.add(100)
    hands.at = 5.0
    assert rate.per_s() == pytest.approx(20.0)
    hands.at = 12.0
    rate.add(30)
    assert rate.per_s() == pytest.approx(3.0)
