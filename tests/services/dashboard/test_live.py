"""Every open page is sent the same frame: how the run stands, from its services or from its folder alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services import durable
from services.api.change_notifier import ChangeNotifier
from services.api.status import StatusReader
from services.dashboard.live import EVERY_S, KEEP_ALIVE_S, ActiveRun, Frame, Live, RecordedRun
from services.dashboard.timeseries import TimeSeries
from services.run_folder import RunFolder
from services.streams.control import AsyncControl
from services.weights.reader import WeightReader
from tests.support.endpoint import Endpoint, open_endpoint
from tests.support.recorded_run import metrics, record


class Scripted:
    """A run whose frames are numbered by how often they were asked for."""

    def __init__(self) -> None:
        self.looks = 0
        self.last: list[bool] = []
        self.changes = True

    async def read(self, *, is_last: bool = False) -> Frame:
        self.looks += self.changes
        self.last.append(is_last)
        return Frame(recorded=self.looks)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def endpoint(tmp_path: Path, redis_url: str) -> AsyncIterator[Endpoint]:
    record(tmp_path / "run", rounds=30)
    async with open_endpoint(tmp_path / "run", redis_url) as endpoint:
        yield endpoint


def live(endpoint: Endpoint, notifier: ChangeNotifier, **options: Any) -> Live:
    reader = StatusReader(endpoint.folder, endpoint.store, endpoint.redis, endpoint.keys, lost_after_s=5.0)
    control = AsyncControl(endpoint.redis, endpoint.keys)
    return Live(ActiveRun(reader, control, TimeSeries(endpoint.folder.metrics)), notifier, **options)


async def test_listeners_share_one_look(endpoint: Endpoint) -> None:
    shared = live(endpoint, ChangeNotifier(), now=lambda: 0.0)
    looks = await asyncio.gather(*(shared.look() for _ in range(10)))
    assert len({id(text) for text in looks}) == 1
    frame = json.loads(looks[0])
    assert (frame["status"]["state"], frame["recorded"]) == ("starting", 30)


async def test_frames_are_server_sent_events_and_end_with_the_app(endpoint: Endpoint) -> None:
    notifier = ChangeNotifier()
    frames = live(endpoint, notifier).frames()
    first = await anext(frames)
    assert first.startswith("data: ")
    assert first.endswith("\n\n")
    assert json.loads(first[6:])["bottleneck"]["kind"] == "unknown"
    notifier.close()
    last = [json.loads(frame[6:]) async for frame in frames]
    assert [frame["status"]["state"] for frame in last] == ["starting"], "how it ended"


@pytest.mark.parametrize(
    ("event", "state", "detail"),
    [
        ({"event": "run_failed", "error": "generator-0: no memory"}, "failed", "generator-0: no memory"),
        ({"event": "stopping", "signal": "SIGINT"}, "stopped", "by SIGINT after 30 of 300 rounds"),
    ],
)
async def test_the_last_frame_says_how_the_supervisor_ended_the_run(
    endpoint: Endpoint, event: dict[str, str], state: str, detail: str
) -> None:
    notifier = ChangeNotifier()
    frames = live(endpoint, notifier).frames()
    await anext(frames)
    lines = [{"event": "run_starting"}, event]
    endpoint.folder.log_of("supervisor").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    notifier.close()
    last = json.loads([frame async for frame in frames][-1][6:])
    assert (last["status"]["state"], last["status"]["detail"]) == (state, detail)
    assert last["next_step"] == f"sept run {endpoint.folder.config}"


async def test_without_redis_a_frame_says_so(endpoint: Endpoint) -> None:
    await endpoint.redis.rpush(endpoint.keys.generators_target, b"of another kind")
    frame = json.loads(await live(endpoint, ChangeNotifier()).look())
    assert frame["status"] is None
    assert frame["error"].startswith("Redis: ")


async def test_a_look_is_shared_for_about_a_second_and_then_made_anew() -> None:
    run, clock = Scripted(), Clock()
    shared = Live(run, ChangeNotifier(), now=clock)
    first = await shared.look()
    clock.now_s += EVERY_S / 2
    assert await shared.look() == first
    clock.now_s += EVERY_S / 2
    assert await shared.look() != first
    assert run.looks == 2
    assert run.last == [False, False]


async def test_a_listener_is_sent_what_changed_and_only_that() -> None:
    run, clock, notifier = Scripted(), Clock(), ChangeNotifier()
    frames = Live(run, notifier, now=clock).frames()
    assert json.loads((await anext(frames))[6:])["recorded"] == 1
    run.changes = False
    following = asyncio.ensure_future(anext(frames))
    await asyncio.sleep(0)
    assert not following.done(), "nothing has changed yet"
    run.changes = True
    clock.now_s += EVERY_S
    notifier.notify()
    async with asyncio.timeout(30):
        assert json.loads((await following)[6:])["recorded"] == 2


async def test_a_silent_stream_says_that_it_is_there_each_time_the_silence_lasts() -> None:
    """The silence begins with the last thing that was sent, be it a frame or a sign of life."""
    run, clock, notifier = Scripted(), Clock(), ChangeNotifier()
    run.changes = False
    waits: list[float] = []

    async def wait(change: asyncio.Event, timeout_s: float) -> None:
        waits.append(timeout_s)
        clock.now_s += timeout_s

    notifier.wait = wait  # type: ignore[method-assign]
    frames = Live(run, notifier, now=clock).frames()
    assert (await anext(frames)).startswith("data: ")
    for times in (1, 2):
        assert await anext(frames) == ": still here\n\n"
        assert waits == [EVERY_S] * round(times * KEEP_ALIVE_S / EVERY_S)


async def test_the_last_look_is_made_when_the_app_goes_down_however_new_the_one_before() -> None:
    run, clock, notifier = Scripted(), Clock(), ChangeNotifier()
    frames = Live(run, notifier, now=clock).frames()
    await anext(frames)
    notifier.close()
    assert [json.loads(frame[6:])["recorded"] async for frame in frames] == [2]
    assert run.last == [False, True]


async def test_what_can_be_asked_of_an_active_run_is_in_its_frame(endpoint: Endpoint) -> None:
    await AsyncControl(endpoint.redis, endpoint.keys).set_generators_target(3)
    frame = json.loads(await live(endpoint, ChangeNotifier()).look())
    assert frame["requests"]["generators_target"] == 3
    assert (frame["error"], frame["next_step"], frame["live_url"]) == ("", "", "")


def recorded_run(folder: RunFolder) -> RecordedRun:
    store = WeightReader(folder.weights, folder.run_id)
    return RecordedRun(folder, store, TimeSeries(folder.metrics), lambda: "http://elsewhere:1")


async def test_a_recorded_run_is_read_from_its_folder(tmp_path: Path) -> None:
    folder = record(tmp_path / "run", rounds=30)
    run = recorded_run(folder)
    frame = await run.read()
    assert frame.status is not None
    assert (frame.status.state, frame.recorded, frame.requests, frame.bottleneck) == ("stopped", 30, None, None)
    assert frame.next_step == f"sept run {folder.config}"
    assert frame.live_url == "", "it has ended: there is no other page of it"
    lines = folder.metrics.read_text().splitlines(keepends=True)
    folder.metrics.write_text("".join(lines[:10]) + metrics(10, loss=9.0).as_line() + "\n")
    again = await run.read()
    assert again.recorded == 11
    assert again.generation != frame.generation, "a page that holds the later rounds has to let them go"


async def test_the_page_of_an_active_run_is_named_by_its_folders(tmp_path: Path) -> None:
    folder = record(tmp_path / "run", rounds=30)
    with folder.supervisor_lock.open("w") as held:
        assert durable.try_lock(held.fileno())
        frame = await recorded_run(folder).read()
    assert frame.status is not None
    assert (frame.status.state, frame.live_url, frame.next_step) == ("running", "http://elsewhere:1", "")


async def test_a_recorded_run_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    folder = record(tmp_path / "run", rounds=3)
    run = recorded_run(folder)
    folder.metrics.unlink()
    folder.metrics.mkdir()
    frame = await run.read()
    assert frame.status is None
    assert "metrics.jsonl" in frame.error
