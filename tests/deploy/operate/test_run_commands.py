"""Finding a run, asking its services, showing what they say."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from deploy.endpoints import Endpoints, write
from deploy.locks import run_lock
from deploy.operate.client import RunClient
from deploy.operate.progress import Progress, in_bytes, render, round_line
from deploy.operate.run_commands import (
    check_generators_target,
    check_rollback,
    client_of,
    confirmed,
    files_not_exported,
    find_run,
    send,
    show_logs,
    show_status,
    watch_status,
)
from services import durable
from services.contracts import EvaluationMetrics, GeneratorStatus, Heartbeat, Part, RoundMetrics, StatusSnapshot
from services.errors import ConfigError, ContractError, SeptError, UnavailableError
from services.net import free_port
from services.run_folder import RunFolder, RunIdentity, version_name
from tests.support.heartbeats import heartbeat, status_of

WHERE = Endpoints(redis_url="redis://:secret@h:1", services_url="http://h:2", token="hush")


def a_round(number: int) -> RoundMetrics:
    values = dict.fromkeys(RoundMetrics.model_fields.keys() - {"evaluations"}, 1)
    return RoundMetrics.model_validate({**values, "round": number, "weight_version": number + 1, "sync_bytes": 1536})


def a_beat(part: Part, part_id: str) -> Heartbeat:
    return heartbeat(part, part_id, "generating")


def a_snapshot() -> StatusSnapshot:
    generator = GeneratorStatus(heartbeat=a_beat(Part.GENERATOR, "generator-7"), age_s=9.0, lost=True)
    return status_of(
        run_id="r-1",
        round=3,
        rounds_total=9,
        weight_version=3,
        last_round=a_round(2),
        learner=a_beat(Part.LEARNER, "learner"),
        generators=(generator,),
        generators_target=2,
        tasks_queued=1,
        tasks_leased=2,
        rollouts_queued=3,
        dead_letters=4,
        oldest_task_s=0.5,
    )


def proof_of(identity: RunIdentity, request: httpx.Request) -> dict[str, str]:
    """What services with this identity answer; nothing where they are not asked for a proof."""
    challenge = request.url.params.get("challenge")
    return {"run_id": identity.run_id, "proof": identity.proof(challenge)} if challenge else {}


async def test_a_name_alone_proves_nothing(tmp_path: Path) -> None:
    """Who knows the run's name and not its key is another; an earlier proof is none either."""
    folder = RunFolder(tmp_path).create()
    for answer in (
        lambda request: proof_of(RunIdentity(folder.run_id, b"a guess"), request),
        lambda request: {"run_id": folder.run_id, "proof": folder.run_identity.proof("0" * 32)},
    ):
        transport = httpx.MockTransport(lambda request, answer=answer: httpx.Response(200, json=answer(request)))
        async with RunClient(WHERE, of_run=folder, transport=transport) as run:
            with pytest.raises(UnavailableError, match=r"no run is active in .* only claims to be it"):
                await run.stop()


def client(answer: Callable[[httpx.Request], httpx.Response]) -> RunClient:
    return RunClient(WHERE, transport=httpx.MockTransport(answer))


def shown(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_export_says_which_files_of_the_model_it_lacks(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").create()
    assert files_not_exported(run) == {}
    model = tmp_path / "model"
    model.mkdir()
    shard = "model-00001-of-00002.safetensors"
    for name in ("config.json", "LICENSE", "pytorch_model.bin", shard, "model.safetensors.index.json"):
        (model / name).write_text("{}")
    run.config.write_text(f'[model]\npath = "{model}"\n')
    assert list(files_not_exported(run)) == ["pytorch_model.bin"], "the trained weights are in the others' place"


async def test_status_is_asked_with_the_token() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer hush"
        return httpx.Response(200, text=a_snapshot().model_dump_json())

    async with client(answer) as run:
        assert (await run.status()).round == 3


async def test_requests_go_to_their_routes() -> None:
    asked: list[tuple[str, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.content))
        return httpx.Response(200, json={"folder": "exports/v000008"})

    async with client(answer) as run:
        await run.pause()
        await run.resume()
        await run.stop()
        await run.scale(3)
        await run.checkpoint()
        await run.roll_back(8)
        assert await run.export(8) == "exports/v000008"
    assert asked == [
        ("/v1/control/pause", b""),
        ("/v1/control/resume", b""),
        ("/v1/control/stop", b""),
        ("/v1/control/generators", b'{"generators_target":3}'),
        ("/v1/control/checkpoint", b""),
        ("/v1/control/rollback", b'{"weight_version":8}'),
        ("/v1/control/export", b'{"weight_version":8}'),
    ]


@pytest.mark.parametrize(
    ("response", "error", "says"),
    [
        (httpx.Response(401, json={"error": "no token", "hint": ""}), UnavailableError, "refuse the token"),
        (httpx.Response(503, json={"error": "Redis is away"}), UnavailableError, "^Redis is away"),
        (
            httpx.Response(404, html="<html>backend</html>"),
            UnavailableError,
            "something else: status 404 with text/html",
        ),
        (httpx.Response(200, text="{}"), ContractError, "cannot read"),
    ],
)
async def test_what_cannot_be_used_is_explained(response: httpx.Response, error: type[SeptError], says: str) -> None:
    async with client(lambda request: response) as run:
        with pytest.raises(error, match=says):
            await run.status()


async def test_services_that_do_not_answer_are_named() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    async with client(answer) as run:
        with pytest.raises(UnavailableError, match="http://h:2 do not answer"):
            await run.status()


def test_the_active_run_is_found_before_the_newest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        find_run(None, runs=tmp_path)
    active, newest = RunFolder(tmp_path / "active").create(), RunFolder(tmp_path / "newest").create()
    durable.write_file(newest.config, "")
    os.utime(newest.config, (2e9, 2e9))
    write(newest, WHERE)  # left by a supervisor that was killed
    with run_lock(active):
        assert find_run(None, runs=tmp_path).path == active.path
    assert find_run(None, runs=tmp_path).path == newest.path
    assert find_run(active.path).path == active.path
    with pytest.raises(ConfigError, match="not a run's folder"):
        find_run(tmp_path)


def test_a_run_that_is_not_active_says_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no run is active in") as caught:
        client_of(RunFolder(tmp_path))
    assert "start it again with `sept run" in caught.value.hint


async def test_another_run_at_the_address_is_asked_for_nothing_but_its_name(tmp_path: Path) -> None:
    folder, asked = RunFolder(tmp_path).create(), []

    def answer(request: httpx.Request) -> httpx.Response:
        assert "Authorization" not in request.headers
        asked.append((request.method, request.url.path))
        return httpx.Response(200, json={"status": "ok", **proof_of(RunIdentity("r-1", b"its key"), request)})

    async with RunClient(WHERE, of_run=folder, transport=httpx.MockTransport(answer)) as run:
        for request in (run.stop, run.pause, run.status, lambda: run.scale(0)):
            with pytest.raises(UnavailableError, match=r"no run is active in .* are those of run r-1, not of"):
                await request()
    assert set(asked) == {("GET", "/healthz")}


async def test_its_own_run_is_asked_once_for_its_name(tmp_path: Path) -> None:
    folder, asked = RunFolder(tmp_path).create(), []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.headers.get("Authorization")))
        return httpx.Response(200, json=proof_of(folder.run_identity, request))

    async with RunClient(WHERE, of_run=folder, transport=httpx.MockTransport(answer)) as run:
        await run.pause()
        await run.stop()
    token = f"Bearer {WHERE.token}"
    assert asked == [("/healthz", None), ("/v1/control/pause", token), ("/v1/control/stop", token)]


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(401, json={"error": "no token", "hint": ""}),  # another run with another token
        httpx.Response(404, html="<html>somebody's web server</html>"),
        httpx.Response(200, json=["no status"]),
        httpx.Response(200, json={"status": "ok"}),  # services of an earlier release
    ],
)
async def test_whoever_else_listens_there_now_is_not_the_run(tmp_path: Path, response: httpx.Response) -> None:
    folder = RunFolder(tmp_path).create()
    transport = httpx.MockTransport(lambda request: response)
    async with RunClient(WHERE, of_run=folder, transport=transport) as run:
        with pytest.raises(UnavailableError, match="no run is active in"):
            await run.stop()


def test_services_that_are_away_are_named_only_while_a_supervisor_runs_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    write(folder, WHERE.model_copy(update={"services_url": f"http://127.0.0.1:{free_port()}"}))
    with pytest.raises(UnavailableError, match="no run is active in"):
        send(folder.path, lambda run: run.stop())
    with run_lock(folder), pytest.raises(UnavailableError, match=r"the services at .* do not answer"):
        send(folder.path, lambda run: run.stop())


def test_the_status_of_a_run_that_was_killed_is_its_last_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path).create()
    write(folder, WHERE.model_copy(update={"services_url": f"http://127.0.0.1:{free_port()}"}))
    durable.append_line(folder.metrics, a_round(0).as_line())
    show_status(folder.path, as_json=False)
    said = capsys.readouterr().out
    assert "no run is active in" in said
    assert f"go on: sept run {folder.config}" in said
    with pytest.raises(UnavailableError, match="no run is active in"):
        show_status(folder.path, as_json=True)


def test_endpoints_do_not_show_their_secrets() -> None:
    assert "secret" not in repr(WHERE)
    assert "hush" not in str(WHERE)


def test_a_folder_is_run_by_one_supervisor_only(tmp_path: Path) -> None:
    with (
        run_lock(RunFolder(tmp_path)),
        pytest.raises(UnavailableError, match="already being run by process"),
        run_lock(RunFolder(tmp_path)),
    ):
        pass
    with run_lock(RunFolder(tmp_path)):
        pass


def test_parts_that_load_their_engine_say_for_how_long() -> None:
    loading = {"doing": "loading engine", "for_s": 83.2}
    known = GeneratorStatus(heartbeat=heartbeat(Part.GENERATOR, "generator-0", "generating"), age_s=9, lost=True)
    snapshot = status_of(generators=(known,), starting=[{"part_id": f"generator-{n}"} | loading for n in (0, 1)])
    lines = shown(render(snapshot, [])).splitlines()
    for part in ("generator-0", "generator-1"):
        assert sum(bool(re.search(rf"{part} +loading engine, 1 min 23 s", line)) for line in lines) == 1
    assert "lost" not in "".join(lines)


def test_the_view_shows_parts_queue_and_rounds() -> None:
    text = shown(render(a_snapshot(), [a_round(number) for number in range(20)]))
    for expected in ("r-1", "round 3 of 9", "1 tasks, 2 leased, 3 rollouts, 4 dead letters", "lost", "generator-7"):
        assert expected in text
    assert "1.5 kB" in text
    assert "waiting for the services" in shown(render(None, []))


def test_eighty_columns_hold_the_view() -> None:
    """Nothing is cut; long states break at their spaces."""
    waits = a_beat(Part.GENERATOR, "generator-10").model_copy(update={"state": "waiting_for_weights", "in_flight": 256})
    row = GeneratorStatus(heartbeat=waits, age_s=0.1, lost=False)
    console = Console(file=io.StringIO(), width=80)
    console.print(render(a_snapshot().model_copy(update={"generators": (row,)}), [a_round(1234)]))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert all(word in text for word in ("generator-10", "waiting for", "weights", "256", "1234", "1.5 kB"))


async def test_without_a_terminal_every_round_is_one_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    durable.append_line(folder.metrics, a_round(0).as_line())
    console = Console(file=io.StringIO(), force_terminal=False)
    async with client(lambda request: httpx.Response(503)) as run:
        with Progress(folder, run, console) as progress:
            durable.append_line(folder.metrics, a_round(1).as_line())
            await progress.refresh()
            await progress.refresh()
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == round_line(a_round(1), total=0) + "\n"


async def test_on_a_terminal_the_view_survives_services_that_are_away(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    async with client(lambda request: httpx.Response(503)) as run:
        with Progress(RunFolder(tmp_path).create(), run, console) as progress:
            await progress.refresh()
            progress.note("generator-0 died")
    assert isinstance(console.file, io.StringIO)
    assert "generator-0 died" in console.file.getvalue()


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 kB"), (2e12, "2.0 TB")])
def test_bytes_in_words(count: float, text: str) -> None:
    assert in_bytes(count) == text


def test_what_cannot_be_undone_needs_a_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert confirmed("all of it goes", yes=True)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # no terminal: nobody can be asked
    with pytest.raises(ConfigError, match="all of it goes, and nobody"):
        confirmed("all of it goes", yes=False)


def test_a_run_that_is_not_active_cannot_be_watched(tmp_path: Path) -> None:
    durable.write_file(RunFolder(tmp_path).identity, "{}")
    with pytest.raises(UnavailableError, match="no run is active"):
        watch_status(tmp_path)


def test_logs_say_when_which_part_wrote_each_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path).create()
    durable.write_file(run.identity, "{}")
    run.log_of("learner").write_text("2026-01-02T03:04:07Z [warning  ] records_lost    part=learner rounds=3\n")
    run.log_of("services").write_text('{"part": "services", "event": "up", "timestamp": "2026-01-02T03:04:05Z"}\n')
    show_logs(tmp_path, (), lines=5, since_s=None, follow=True, as_json=False)
    local = [time.strftime("%m-%d %H:%M:%S", time.localtime(1767323045 + later)) for later in (0, 2)]
    assert capsys.readouterr().out.splitlines() == [
        f"{local[0]}  services     up",
        f"{local[1]}  learner      warning: records_lost rounds=3",
    ]
    show_logs(tmp_path, ("learner",), lines=None, since_s=1767323046, follow=False, as_json=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"part": "learner", "time_s": 1767323047.0, "level": "warning", "text": "records_lost rounds=3"}
    ]


def test_a_line_of_a_round_says_when_of_how_many_and_how_good() -> None:
    measured = EvaluationMetrics(weight_version=2, temperature=0.5, samples=4, pass_at_k={"a": {1: 0.25}})
    line = round_line(a_round(1).model_copy(update={"evaluations": (measured,)}), total=9)
    assert re.match(r"\d\d:\d\d:\d\d  round 1 \(2 of 9\)  pass@1 25\.0% at 0\.5  version 2  ", line)
    untrained = measured.model_copy(update={"weight_version": 0})
    line = round_line(a_round(0).model_copy(update={"evaluations": (untrained, measured)}), total=9)
    assert "untrained pass@1 25.0% at 0.5  pass@1 25.0% at 0.5  version 1  " in line


@pytest.mark.parametrize("target", [-1, 10_001])
def test_numbers_of_generators_that_no_run_takes_are_refused_before_anything_is_sent(target: int) -> None:
    with pytest.raises(ConfigError, match=f"{target} generators are not possible"):
        check_generators_target(target)


def test_more_generators_than_the_machine_holds_are_doubted() -> None:
    assert check_generators_target(1) == ""
    assert "5000 generators on this machine share its" in check_generators_target(5000)


def test_a_version_without_a_checkpoint_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    for version in (3, 4):
        (folder.checkpoints / version_name(version)).mkdir()
    durable.append_line(folder.metrics, a_round(3).as_line())
    with pytest.raises(ConfigError, match="no checkpoint of version 9999") as refused:
        check_rollback(tmp_path, 9999)
    assert "there are: 3, 4" in refused.value.hint
    with pytest.raises(ConfigError, match="at version 4 already"):
        check_rollback(tmp_path, 4)
    check_rollback(tmp_path, 3)
