from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from services.errors import ConfigError, DataError
from tests.support.curricula import curriculum, indexes


def test_every_epoch_is_a_new_permutation() -> None:
    drawn = indexes(curriculum(12, 4), range(9))
    epochs = [drawn[start : start + 12] for start in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_orders_of_one_seed_are_not_those_of_another() -> None:
    """Else runs that differ by their seed alone would not be independent repeats."""
    orders = {
        (seed, epoch): tuple(indexes(curriculum(12, 12, seed=seed), range(epoch, epoch + 1)))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == len(orders)


def test_a_round_may_span_two_epochs() -> None:
    drawn = indexes(curriculum(10, 4), range(5))
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))


def test_data_smaller_than_a_round_repeats_with_distinct_task_ids() -> None:
    course = curriculum(3, 8, rounds=2)
    tasks = course.tasks_of(0)
    assert len({task.task_id for task in tasks}) == 8
    assert Counter(indexes(course, range(3))) == {0: 8, 1: 8, 2: 8}


def test_a_round_depends_only_on_seed_and_number() -> None:
    course = curriculum(50, 8)
    late = course.tasks_of(5)
    assert [course.tasks_of(number) for number in range(6)][5] == late
    assert curriculum(50, 8).tasks_of(5) == late
    assert curriculum(50, 8, seed=4).tasks_of(5) != late


def test_tasks_carry_round_position_limits_and_settings() -> None:
    sampling = {
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.05,
        "max_response_tokens": 55,
        "rollouts_per_prompt": 4,
        "tau_start": 0.7,
        "schedule": "constant",
    }
    course = curriculum(6, 3, sampling=sampling)
    task = course.tasks_of(2)[1]
    assert (task.task_id, task.round, task.position) == ("r000002-00001", 2, 1)
    assert (task.temperature, task.top_p, task.max_response_tokens, task.samples) == (0.7, 0.9, 55, 4)
    assert (task.top_k, task.min_p) == (20, 0.05)
    assert task.stop_token_ids == (7, 9)
    assert task.prompt_tokens.tolist() == course.prompts_of(2)[1].tokens.tolist()


def test_temperature_follows_the_epochs() -> None:
    course = curriculum(8, 4, sampling={"tau_start": 0.6, "tau_end": 1.0, "anneal_epochs": 2.0})
    assert [course.epoch_at(number) for number in range(5)] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [course.tasks_of(number)[0].temperature for number in range(6)] == pytest.approx(
        [0.6, 0.7, 0.8, 0.9, 1.0, 1.0]
    )


@pytest.mark.parametrize(("staleness", "versions"), [(0, [0, 1, 2, 3]), (2, [0, 0, 0, 1])])
def test_a_task_requires_a_version_no_older_than_max_staleness(staleness: int, versions: list[int]) -> None:
    course = curriculum(8, 4, max_staleness=staleness)
    assert [course.tasks_of(number)[0].min_weight_version for number in range(4)] == versions
    assert course.tasks_of(3)[0].max_weight_version is None


def test_a_fixed_data_set_is_sampled_from_version_0_at_tau_start() -> None:
    task = curriculum(8, 4, data="fixed").tasks_of(1)[0]
    assert (task.min_weight_version, task.max_weight_version, task.temperature) == (0, 0, 0.6)


def test_of_a_fixed_data_set_every_prompt_is_drawn_once() -> None:
    course = curriculum(10, 4, data="fixed", rounds=9, max_staleness=0)
    assert course.drawn_rounds() == range(3)
    assert [len(course.tasks_of(round_)) for round_ in range(5)] == [4, 4, 2, 0, 0]
    drawn = [task for round_ in course.drawn_rounds() for task in course.tasks_of(round_)]
    assert sorted(task.prompt_tokens[0] for task in drawn) == list(range(10))
    assert {task.min_weight_version for task in drawn} == {0}
    assert curriculum(10, 4, data="fixed", rounds=2).drawn_rounds() == range(2)
    assert curriculum(8, 4, data="fixed", rounds=5).drawn_rounds() == range(2)
    assert curriculum(10, 4, rounds=9).drawn_rounds() == range(9), "online, every round has tasks"


def test_whole_rounds_of_an_epoch_leave_the_rest_to_another_epoch() -> None:
    """An online epoch leaves out another rest each time; a fixed data set has no answers to the rest, so never."""
    whole: dict[str, Any] = {"recipe": "paper", "rounds": 12}
    online, fixed = curriculum(10, 4, **whole), curriculum(10, 4, data="fixed", **whole)
    epochs = [indexes(online, range(start, start + 2)) for start in range(0, 12, 2)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert {row for epoch in epochs for row in epoch} == set(range(10))
    assert set(indexes(fixed, range(12))) == set(range(8))
    assert (online.epoch_at(2), fixed.drawn_rounds()) == (1.0, range(2))
    assert curriculum(10, 4, recipe="paper", epochs=3).rounds_total == 6
    assert curriculum(7, 4, recipe="paper", rounds=1).rounds_total == 1
    with pytest.raises(ConfigError, match="takes whole rounds from each epoch, and 3 prompts are less than one"):
        curriculum(3, 4, **whole)
    assert curriculum(1, 1, **whole).rounds_total == 12


def test_rounds_count_from_0() -> None:
    with pytest.raises(ValueError, match="rounds count from 0, got -1"):
        curriculum(8, 4).prompts_of(-1)


def test_rounds_total_counts_full_rounds_or_takes_the_setting() -> None:
    assert curriculum(10, 4, epochs=3).rounds_total == 7
    assert curriculum(1280, 128, epochs=0.1).rounds_total == 1
    assert curriculum(100, 1, epochs=0.29).rounds_total == 29, "as binary floats it is a little less"
    assert curriculum(100, 29, epochs=0.29).rounds_total == 1
    assert curriculum(10, 4, epochs=3, rounds=2).rounds_total == 2


def test_less_than_a_round_is_an_error_that_names_the_settings() -> None:
    with pytest.raises(ConfigError, match=r"training\.epochs = 1\.0 over 10 prompts"):
        curriculum(10, 128, epochs=1)
    with pytest.raises(DataError, match="no prompts"):
        curriculum(0, 1)
