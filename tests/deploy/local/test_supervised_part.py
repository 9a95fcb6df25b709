"""Parts of a run on tiny real processes: restarted, given up, killed when they do not drain."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from deploy.local import supervised_part
from deploy.local.supervised_part import RestartPolicy, SupervisedPart, never_worked
from deploy.local.supervisor import Supervisor
from services.errors import UnavailableError
from tests.support.supervised_parts import STUBBORN, Asked, Watcher, is_alive, watching


@pytest.fixture
async def watcher(tmp_path: Path) -> AsyncIterator[Watcher]:
    async with watching(tmp_path) as watcher:
        yield watcher


async def test_a_part_that_is_killed_starts_again(watcher: Watcher) -> None:
    supervisor = watcher.supervisor(watcher.plan())
    run = asyncio.create_task(supervisor.run())
    await watcher.until_up("generator-0")
    first = watcher.pid("generator-0")
    os.kill(first, signal.SIGKILL)
    await watcher.until(lambda: watcher.starts("generator-0") == 2)
    assert watcher.pid("generator-0") != first
    supervisor.request_stop(signal.SIGTERM)
    assert await run == signal.SIGTERM
    assert any("ended=killed by SIGKILL" in text for text in watcher.said)


async def test_a_part_that_keeps_failing_ends_the_run_with_the_end_of_its_log(watcher: Watcher) -> None:
    failing = watcher.plan(services="print('no space left on device'); raise SystemExit(1)")
    with pytest.raises(UnavailableError, match=r"services died 3 times in a row.*exit code 1") as caught:
        await watcher.supervisor(failing).run()
    assert "no space left on device" in caught.value.message
    assert not any(is_alive(watcher.pid(part)) for part in ("redis", "services", "learner", "generator-0"))


async def late_failures(watcher: Watcher, has_worked: Callable[[str, int], bool]) -> SupervisedPart:
    """A part that has failed until it was given up, each time after it had lived long enough to count as settled."""
    policy = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.01, settled_s=0.0, max_failures=3)
    spec = watcher.script("late", "print('out of ideas', flush=True); raise SystemExit(1)")
    part = SupervisedPart(spec, watcher.folder, policy, watcher.log, may_finish=True, has_worked=has_worked)
    await asyncio.wait([part.task], timeout=60)
    return part


async def test_a_part_that_always_fails_late_is_given_up_like_any_other(watcher: Watcher) -> None:
    part = await late_failures(watcher, never_worked)
    with pytest.raises(UnavailableError, match=r"late died 3 times in a row without having worked") as caught:
        await part.task
    assert watcher.starts("late") == 3
    assert "out of ideas" in caught.value.message


async def test_failures_before_work_that_was_done_do_not_count(watcher: Watcher) -> None:
    asked: list[tuple[str, int]] = []

    def has_worked(name: str, pid: int) -> bool:
        asked.append((name, pid))
        return len(asked) < 8

    part = await late_failures(watcher, has_worked)
    with pytest.raises(UnavailableError, match="3 times"):
        await part.task
    assert watcher.starts("late") == 9  # the count began anew with each of seven; the seventh failure counts
    assert asked[-1] == ("late", watcher.pid("late"))


KILLED = "import os; os.kill(os.getpid(), signal.SIGKILL)"


async def killed(watcher: Watcher, policy: RestartPolicy, has_worked: Callable[[str, int], bool]) -> str:
    """Why a part is given up that is killed from outside again and again."""
    part = SupervisedPart(
        watcher.script("victim", KILLED), watcher.folder, policy, watcher.log, may_finish=True, has_worked=has_worked
    )
    await asyncio.wait([part.task], timeout=60)
    with pytest.raises(UnavailableError) as caught:
        await part.task
    return caught.value.message


async def test_kills_before_work_that_was_done_do_not_count(watcher: Watcher) -> None:
    """A machine that kills a part now and then for weeks does not end the run."""
    lives = iter([False, False, True, False, True, False, False, False])
    policy = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.01, settled_s=0.0, max_kills=4)
    message = await killed(watcher, policy, lambda name, pid: next(lives))
    assert message.startswith("victim died 4 times in a row")
    assert watcher.starts("victim") == 8


async def test_kills_and_failures_have_a_limit_each(watcher: Watcher) -> None:
    policy = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.01, max_failures=2, max_kills=5)
    assert (await killed(watcher, policy, never_worked)).startswith("victim died 5 times in a row")
    assert watcher.starts("victim") == 5


async def test_work_in_a_short_life_forgives_nothing(watcher: Watcher) -> None:
    policy = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.01, settled_s=3600.0, max_kills=3)
    assert (await killed(watcher, policy, lambda name, pid: True)).startswith("victim died 3 times in a row")


async def test_a_bad_config_is_not_tried_twice(watcher: Watcher) -> None:
    with pytest.raises(UnavailableError, match=r"learner died after .* s \(exit code 2\)"):
        await watcher.supervisor(watcher.plan("raise SystemExit(2)")).run()
    assert watcher.starts("learner") == 1


async def test_a_part_that_does_not_drain_is_killed(watcher: Watcher) -> None:
    supervisor = Supervisor(
        watcher.plan(STUBBORN), run=watcher.folder, generators_target=Asked(), log=watcher.log, drain_s=0.0, grace_s=0.1
    )
    run = asyncio.create_task(supervisor.run())
    await watcher.until_up("learner")
    supervisor.request_stop(signal.SIGINT)
    await run
    assert "part_killed part=learner" in watcher.said


async def test_what_is_lacking_outside_is_waited_for_by_time_and_named(watcher: Watcher) -> None:
    """However often it fails meanwhile."""
    policy = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.01, max_failures=2, outlast_s=1.0)
    lacking = watcher.script("lacking", "print('sept: the disk is full\\n\\nhint: free some'); raise SystemExit(4)")
    part = SupervisedPart(lacking, watcher.folder, policy, watcher.log, may_finish=True)
    await asyncio.wait([part.task], timeout=60)
    with pytest.raises(UnavailableError, match=r"lacking died \d+ times in a row") as caught:
        await part.task
    assert watcher.starts("lacking") > 2
    assert "the disk is full" in caught.value.message
    assert any("last_words=sept: the disk is full" in text for text in watcher.said)


async def test_a_part_that_sends_no_heartbeats_is_given_up(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised_part, "SILENCE_CHECK_S", 0.05)
    policy = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.01, max_failures=2, most_silent_s=0.2)
    spec = watcher.script("hanging", "print('loading', flush=True)" + STUBBORN)
    part = SupervisedPart(spec, watcher.folder, policy, watcher.log, may_finish=True, silent_s=lambda part, pid: inf)
    await asyncio.wait([part.task], timeout=60)
    with pytest.raises(UnavailableError, match=r"hanging died 2 times in a row.*had sent no heartbeat for 0 s"):
        await part.task
    assert sum("part_died part=hanging ended=killed, as it had" in text for text in watcher.said) == 1


async def test_a_part_is_as_silent_as_it_has_lived_at_most(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has an earlier one's number did not send that one's last heartbeat."""
    monkeypatch.setattr(supervised_part, "SILENCE_CHECK_S", 0.01)
    asked = asyncio.Event()

    def silent_s(_part: str, _pid: int) -> float:
        asked.set()
        return inf

    part = SupervisedPart(
        watcher.script("young", STUBBORN),
        watcher.folder,
        RestartPolicy(most_silent_s=3600),
        watcher.log,
        may_finish=True,
        silent_s=silent_s,
    )
    await asyncio.wait_for(asked.wait(), 60)
    part.kill()
    await asyncio.wait([part.task], timeout=60)
    await part.task
    assert not any("part_died" in text for text in watcher.said)


async def test_a_cause_that_can_be_removed_is_removed_before_the_next_start(watcher: Watcher) -> None:
    flag = watcher.folder / "flag"
    looks = f"import os; print('no flag', flush=True); raise SystemExit(0 if os.path.exists({str(flag)!r}) else 1)"
    spec = watcher.script("broken", looks)

    def mend(output: str) -> str:
        assert output == "no flag\n", "what this process wrote"
        flag.touch()
        return "the flag is set"

    policy = RestartPolicy(first_delay_s=0.01, max_failures=2)
    part = SupervisedPart(replace(spec, mend=mend), watcher.folder, policy, watcher.log, may_finish=True)
    await asyncio.wait([part.task], timeout=60)
    await part.task
    assert watcher.starts("broken") == 2
    assert "part_mended part=broken done=the flag is set" in watcher.said


def test_delays_between_restarts_grow_to_a_limit() -> None:
    policy = RestartPolicy(first_delay_s=0.5, longest_delay_s=3.0)
    assert [policy.delay_s(deaths) for deaths in (1, 2, 3, 4, 5000)] == [0.5, 1.0, 2.0, 3.0, 3.0]
