"""What a person sees while a run is active, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from deploy.endpoints import Endpoints
from deploy.operate.client import RunClient
from deploy.operate.durations import in_words
from deploy.operate.progress import ROUNDS_SHOWN, Progress, in_bytes, render, round_line
from services import durable
from services.contracts import EvaluationMetrics, GeneratorStatus, Heartbeat, Part, StatusSnapshot
from services.run_folder import RunFolder
from tests.support.heartbeats import heartbeat, status_of
from tests.support.recorded_run import metrics

NOBODY = Endpoints(redis_url="redis://h:1", services_url="http://h:2")


def services(answer: httpx.Response) -> RunClient:
    """Services that give every request this answer."""
    return RunClient(NOBODY, transport=httpx.MockTransport(lambda request: answer))


def a_beat(part: Part, part_id: str) -> Heartbeat:
    return heartbeat(part, part_id, "generating")


def a_snapshot() -> StatusSnapshot:
    generator = GeneratorStatus(heartbeat=a_beat(Part.GENERATOR, "generator-7"), age_s=9.0, lost=True)
    return status_of(
        run_id="r-1",
        round=3,
        rounds_total=9,
        weight_version=3,
        last_round=metrics(2),
        learner=a_beat(Part.LEARNER, "learner"),
        generators=(generator,),
        generators_target=2,
        tasks_queued=1,
        tasks_leased=2,
        rollouts_queued=3,
        dead_letters=4,
        oldest_task_s=0.5,
    )


def shown(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_parts_that_load_their_engine_say_for_how_long() -> None:
    loading = {"doing": "loading engine", "for_s": 83.2}
    known = GeneratorStatus(heartbeat=a_beat(Part.GENERATOR, "generator-0"), age_s=9, lost=True)
    starting = [{"part_id": f"generator-{n}"} | loading for n in (0, 1)]
    lines = shown(render(status_of(generators=(known,), starting=starting), [])).splitlines()
    for part in ("generator-0", "generator-1"):
        assert sum(bool(re.search(rf"{part} +loading engine, 1 min 23 s", line)) for line in lines) == 1
    assert "lost" not in "".join(lines)


def test_the_view_shows_parts_queue_and_rounds() -> None:
    text = shown(render(a_snapshot(), [metrics(number, sync_bytes=1536) for number in range(20)]))
    for expected in ("r-1", "round 3 of 9", "1 tasks, 2 leased, 3 rollouts, 4 dead letters", "lost", "generator-7"):
        assert expected in text
    assert "1.5 kB" in text
    assert "waiting for the services" in shown(render(None, []))


def test_eighty_columns_hold_the_view() -> None:
    """Nothing is cut; long states break at their spaces."""
    waits = a_beat(Part.GENERATOR, "generator-10").model_copy(update={"state": "waiting_for_weights", "in_flight": 256})
    row = GeneratorStatus(heartbeat=waits, age_s=0.1, lost=False)
    console = Console(file=io.StringIO(), width=80)
    console.print(render(a_snapshot().model_copy(update={"generators": (row,)}), [metrics(1234, sync_bytes=1536)]))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert all(word in text for word in ("generator-10", "waiting for", "weights", "256", "1234", "1.5 kB"))


async def test_without_a_terminal_every_round_is_one_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    durable.append_line(folder.metrics, metrics(0).as_line())
    console = Console(file=io.StringIO(), force_terminal=False)
    async with services(httpx.Response(503)) as run:
        with Progress(folder, run, console) as progress:
            durable.append_line(folder.metrics, metrics(1).as_line())
            await progress.refresh()
            await progress.refresh()
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == round_line(metrics(1), total=0) + "\n"


async def test_on_a_terminal_the_view_survives_services_that_are_away(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    async with services(httpx.Response(503)) as run:
        with Progress(RunFolder(tmp_path).create(), run, console) as progress:
            await progress.refresh()
            progress.note("generator-0 died")
    assert isinstance(console.file, io.StringIO)
    assert "generator-0 died" in console.file.getvalue()


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 kB"), (2e12, "2.0 TB")])
def test_bytes_in_words(count: float, text: str) -> None:
    assert in_bytes(count) == text


def test_a_line_of_a_round_says_when_of_how_many_and_how_good() -> None:
    measured = EvaluationMetrics(weight_version=2, temperature=0.5, samples=4, pass_at_k={"a": {1: 0.25}})
    line = round_line(metrics(1).model_copy(update={"evaluations": (measured,)}), total=9)
    assert re.match(r"\d\d:\d\d:\d\d  round 1 \(2 of 9\)  pass@1 25\.0% at 0\.5  version 2  ", line)
    untrained = measured.model_copy(update={"weight_version": 0})
    line = round_line(metrics(0).model_copy(update={"evaluations": (untrained, measured)}), total=9)
    assert "untrained pass@1 25.0% at 0.5  pass@1 25.0% at 0.5  version 1  " in line


def row_of(text: str, first: str) -> str:
    """The row that begins with this word, its words one space apart."""
    [row] = [" ".join(line.split()) for line in text.splitlines() if line.split()[:1] == [first]]
    return row


def test_each_part_has_its_own_figures() -> None:
    learner = heartbeat(
        Part.LEARNER,
        "learner",
        "training",
        shares={"training": 0.625, "waiting": 0.375},
        weight_version=4,
        tokens_per_s=5200.4,
        message="round 4",
    )
    generator = heartbeat(
        Part.GENERATOR,
        "generator-7",
        "waiting_for_weights",
        shares={"generating": 0.25, "training": 0.5, "idle": 0.25},
        in_flight=12,
        updates=3,
        pause_ms=41.6,
        chat_url="http://h:9",
    )
    text = shown(
        render(
            status_of(
                learner=learner,
                generators=(
                    GeneratorStatus(heartbeat=generator, age_s=0.1, lost=False),
                    GeneratorStatus(heartbeat=a_beat(Part.GENERATOR, "generator-8"), age_s=60.0, lost=True),
                ),
            ),
            [],
        )
    )
    assert row_of(text, "learner") == "learner training 4 0 5200 - 62% round 4"
    assert row_of(text, "generator-7") == "generator-7 waiting for weights - 12 0 42 ms 75% http://h:9"
    assert row_of(text, "generator-8").startswith("generator-8 lost ")
    lost = shown(render(status_of(learner=learner, learner_lost=True), []))
    assert row_of(lost, "learner").startswith("learner lost ")


def test_the_headline_says_what_it_waits_for_and_how_long_the_rest_takes() -> None:
    text = shown(
        render(status_of(state="starting", detail="for a generator", seconds_left=7200.0, weight_version=0), [])
    )
    assert "starting (for a generator)" in text
    assert f"about {in_words(7200.0)} left" in text
    assert "version 0 " in text, "the initial model is a version, too"
    unknown = shown(render(status_of(), []))
    assert "left" not in unknown
    assert "version - " in unknown


def test_the_last_rounds_are_shown_with_the_newest_at_the_bottom() -> None:
    rounds = [metrics(number, loss=number / 8, staleness_mean=0.5, staleness_max=2) for number in range(20)]
    text = shown(render(None, rounds))
    rows = [line.split() for line in text.splitlines() if line.split()[0].isdigit()]
    assert [row[0] for row in rows] == [str(number) for number in range(20 - ROUNDS_SHOWN, 20)]
    assert rows[-1][1:3] == [f"{19 / 8:.4f}", f"{rounds[-1].tau_s:.2f}"]
    assert " 0.50 / 2 " in " ".join(rows[-1])


async def test_on_a_terminal_the_services_are_asked_at_every_look(tmp_path: Path) -> None:
    """What they say now replaces what they said before."""
    answers = iter([status_of(round=3, rounds_total=9), status_of(round=4, rounds_total=9)])
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=next(answers).model_dump_json()))
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    assert isinstance(console.file, io.StringIO)
    async with RunClient(NOBODY, transport=transport) as run:
        with Progress(RunFolder(tmp_path).create(), run, console) as progress:
            await progress.refresh()
            assert "round 3 of 9" in console.file.getvalue()
            await progress.refresh()
            assert "round 4 of 9" in console.file.getvalue()


def test_what_should_not_be_missed_is_not_dimmed(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=40)
    progress = Progress(RunFolder(tmp_path).create(), services(httpx.Response(503)), console)
    progress.tell(["a line that is longer than the terminal is wide, and stays whole", "[brackets]"])
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ("a line that is longer than the terminal is wide, and stays whole\n[brackets]\n")
