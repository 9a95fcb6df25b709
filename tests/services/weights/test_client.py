"""The client fetches whole and verified files over a line that breaks, and names what went wrong."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from services.contracts import FileEntry, FileKind, WeightManifest
from services.errors import ContractError, DigestError, SeptError, UnavailableError, VersionNotFoundError, WeightError
from services.http_client import OtherRunError
from services.run_folder import RunIdentity
from services.tensors import digest_bytes
from services.weights.bundle import MEDIA_TYPE, bundle
from services.weights.client import CHUNK_BYTES, WeightClient

CONTENT = bytes(range(256)) * (3 * CHUNK_BYTES // 256)
ENTRY = FileEntry(name="delta.bin", kind=FileKind.DELTA, size_bytes=len(CONTENT), digest=digest_bytes(CONTENT))
IDENTITY = RunIdentity("r-1", b"its key")

Answer = Callable[[httpx.Request], httpx.Response]


class Line(httpx.AsyncByteStream):
    """Carries its bytes; a broken one is then cut."""

    def __init__(self, content: bytes, *, broken: bool = False) -> None:
        self._content = content
        self._broken = broken

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content
        if self._broken:
            raise httpx.ReadError("the line was cut")


class Server:
    """Answers from a list, the last one for ever, and keeps the requests."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return answer(request)

    def client(
        self, *, deadline_s: float = 5.0, token: str | None = None, identity: RunIdentity | None = None
    ) -> WeightClient:
        transport = httpx.MockTransport(self)
        return WeightClient("http://far", token, deadline_s=deadline_s, identity=identity, transport=transport)


def sending(content: bytes, status: int = 200) -> Answer:
    return lambda _: httpx.Response(status, stream=Line(content))


def answering(content: bytes, status: int, kind: str) -> Answer:
    return lambda _: httpx.Response(status, stream=Line(content), headers={"Content-Type": kind})


def from_range(request: httpx.Request) -> httpx.Response:
    start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
    return httpx.Response(206, stream=Line(CONTENT[start:]))


def broken_after(count: int) -> Answer:
    return lambda _: httpx.Response(200, stream=Line(CONTENT[:count], broken=True))


def refusing(status: int) -> Answer:
    return sending(b'{"error": "no", "hint": ""}', status)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


whole = sending(CONTENT)
nothing = sending(b"", 204)


async def test_a_file_arrives_whole(tmp_path: Path) -> None:
    async with Server(whole).client() as client:
        path = await client.fetch(3, ENTRY, tmp_path / "delta")
    assert path.read_bytes() == CONTENT
    assert names_in(tmp_path) == ["delta"]


@pytest.mark.parametrize("arrived", [1, 1000, CHUNK_BYTES, CHUNK_BYTES + 1000])
async def test_a_broken_download_goes_on_where_it_stopped(arrived: int, tmp_path: Path) -> None:
    server = Server(broken_after(arrived), from_range)
    async with server.client() as client:
        path = await client.fetch(3, ENTRY, tmp_path / "delta")
    assert path.read_bytes() == CONTENT
    assert server.requests[1].headers["range"] == f"bytes={arrived}-"
    assert server.requests[1].headers["if-range"] == f'"{ENTRY.digest}"'


async def test_a_server_that_ignores_ranges_is_started_over(tmp_path: Path) -> None:
    async with Server(broken_after(1000), whole).client() as client:
        path = await client.fetch(3, ENTRY, tmp_path / "delta")
    assert path.read_bytes() == CONTENT


async def test_a_line_that_always_breaks_at_the_same_place_is_given_up(tmp_path: Path) -> None:
    always_from_the_start = Server(broken_after(CHUNK_BYTES + 1000))
    async with always_from_the_start.client(deadline_s=0.2) as client:
        with pytest.raises(UnavailableError, match="the line was cut"):
            await client.fetch(3, ENTRY, tmp_path / "delta")


async def test_a_line_that_keeps_breaking_is_followed_as_long_as_it_gets_further(tmp_path: Path) -> None:
    """However often: the deadline is one of silence, and so are the pauses. The download as a whole takes longer."""
    content = bytes(range(256)) * (40 * CHUNK_BYTES // 256)
    entry = ENTRY.model_copy(update={"size_bytes": len(content), "digest": digest_bytes(content)})
    sent: list[int] = []

    def a_piece_more(request: httpx.Request) -> httpx.Response:
        start = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        sent.append(start)
        end = start + CHUNK_BYTES
        return httpx.Response(206 if start else 200, stream=Line(content[start:end], broken=end < len(content)))

    async with WeightClient("http://far", deadline_s=2.0, transport=httpx.MockTransport(a_piece_more)) as client:
        began = time.monotonic()
        path = await client.fetch(3, entry, tmp_path / "delta")
    assert path.read_bytes() == content
    assert time.monotonic() - began > 2.0
    assert sent == list(range(0, len(content), CHUNK_BYTES))


async def test_damaged_bytes_of_an_earlier_process_are_thrown_away(tmp_path: Path) -> None:
    (tmp_path / f".partial-{ENTRY.digest}").write_bytes(b"x" * 1000)
    async with Server(from_range, whole).client() as client:
        path = await client.fetch(3, ENTRY, tmp_path / "delta")
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"short", CONTENT[:-1] + b"?", CONTENT + b"more", b""])
async def test_other_bytes_than_promised_are_refused(tmp_path: Path, content: bytes) -> None:
    async with Server(sending(content)).client() as client:
        with pytest.raises(DigestError):
            await client.fetch(3, ENTRY, tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


async def test_a_server_that_is_starting_is_asked_again() -> None:
    server = Server(refusing(503), nothing)
    async with server.client() as client:
        assert await client.latest(None, None, 0) is None
    assert len(server.requests) == 2


async def test_a_server_that_never_answers_is_named_when_the_deadline_is_over() -> None:
    async with Server(refusing(503)).client(deadline_s=0.1) as client:
        with pytest.raises(UnavailableError, match=r"http://far gave no answer for 0\.1 s: status 503"):
            await client.manifest(0)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, UnavailableError),
        (403, UnavailableError),
        (404, VersionNotFoundError),
        (409, WeightError),
        (422, ContractError),
    ],
)
async def test_a_refusal_is_not_repeated(status: int, error: type[Exception]) -> None:
    server = Server(refusing(status))
    async with server.client() as client:
        with pytest.raises(error):
            await client.manifest(0)
    assert len(server.requests) == 1


INSTEAD = pytest.mark.parametrize(
    "instead",
    [
        answering(b"<html>default backend</html>", 404, "text/html"),
        answering(b"Bad Gateway", 502, "text/plain"),
        answering(b"<form>Log in</form>", 200, "text/html; charset=utf-8"),
        answering(b'{"status": "ok"}', 200, "application/json"),
        answering(b"", 302, "text/html"),
    ],
)


@INSTEAD
async def test_what_an_ingress_answers_instead_is_waited_out_and_named_at_the_deadline(instead: Answer) -> None:
    server = Server(instead, nothing)
    async with server.client() as client:
        assert await client.latest(None, None, 0) is None
    assert len(server.requests) == 2
    async with Server(instead).client(deadline_s=0.1) as client:
        with pytest.raises(UnavailableError, match=r"gave no answer for 0\.1 s: status \d+") as caught:
            await client.manifest(0)
    assert "ingress" in caught.value.hint


@INSTEAD
async def test_it_is_waited_out_as_well_before_the_services_have_proved_whose_they_are(instead: Answer) -> None:
    def proves(request: httpx.Request) -> httpx.Response:
        assert "authorization" not in request.headers
        proof = IDENTITY.proof(request.url.params["challenge"])
        return httpx.Response(200, json={"run_id": IDENTITY.run_id, "proof": proof})

    server = Server(instead, proves, nothing)
    async with server.client(token="secret", identity=IDENTITY) as client:
        assert await client.latest(None, None, 0) is None
    assert [request.headers.get("authorization") for request in server.requests] == [None, None, "Bearer secret"]
    async with Server(instead).client(deadline_s=0.1, identity=IDENTITY) as client:
        with pytest.raises(UnavailableError, match=r"gave no answer for 0\.1 s: .*not the services of run r-1: status"):
            await client.manifest(0)


async def test_another_runs_services_are_not_waited_out() -> None:
    another = RunIdentity("r-2", b"its key")
    server = Server(lambda request: httpx.Response(200, json={"run_id": another.run_id, "proof": "x"}))
    async with server.client(identity=IDENTITY) as client:
        with pytest.raises(OtherRunError, match=r"are those of run r-2, not of r-1"):
            await client.manifest(0)
    assert len(server.requests) == 1


async def test_a_file_is_fetched_when_the_ingress_has_found_its_services(tmp_path: Path) -> None:
    async with Server(answering(b"<html>starting</html>", 200, "text/html"), whole).client() as client:
        path = await client.fetch(3, ENTRY, tmp_path / "delta")
    assert path.read_bytes() == CONTENT


async def test_an_answer_that_is_no_manifest_is_refused() -> None:
    async with Server(sending(b'{"weight_version": -1}')).client() as client:
        with pytest.raises(ContractError, match="not a manifest"):
            await client.manifest(0)


async def test_the_token_and_what_is_held_are_sent() -> None:
    server = Server(nothing)
    async with server.client(token="secret") as client:
        await client.latest(7, ENTRY.digest, 0.5)
    request = server.requests[0]
    assert request.headers["authorization"] == "Bearer secret"
    assert dict(request.url.params) == {"timeout_s": "0.5", "after": "7", "digest": ENTRY.digest}


class Pieces(httpx.AsyncByteStream):
    """A body that comes in pieces of 10 bytes, each within any limit."""

    def __init__(self, size: int) -> None:
        self._size = size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, self._size, 10):
            yield b"x" * min(10, self._size - start)


@pytest.mark.parametrize(("status", "limit"), [(200, "MAX_MANIFEST_BYTES"), (409, "MAX_REASON_BYTES")])
async def test_an_answer_beyond_the_limit_is_refused_in_however_many_pieces(
    status: int, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.weights.client." + limit, 100)
    kind = {"Content-Type": "application/json"}
    for size, refused in ((101, True), (100, False)):
        answer = Server(lambda _, size=size: httpx.Response(status, stream=Pieces(size), headers=kind))  # type: ignore[misc]
        async with answer.client(deadline_s=0.05) as client:
            with pytest.raises(SeptError) as caught:
                await client.manifest(3)
        assert ("exceeds the limit of 100 bytes" in caught.value.message) is refused


async def test_a_file_that_came_with_the_manifest_is_not_asked_for(tmp_path: Path) -> None:
    manifest = manifest_with(ENTRY)
    server = Server(answering(bundle(manifest.model_dump_json().encode(), CONTENT), 200, MEDIA_TYPE), sending(CONTENT))
    async with server.client() as client:
        assert await client.latest(0, None, 0) == manifest
        assert (await client.fetch(1, ENTRY, tmp_path / "delta")).read_bytes() == CONTENT
        assert len(server.requests) == 1
        await client.fetch(1, ENTRY, tmp_path / "again")
    assert len(server.requests) == 2, "it is kept for the version that it came with"


async def test_a_damaged_file_that_came_with_the_manifest_is_fetched(tmp_path: Path) -> None:
    manifest = manifest_with(ENTRY)
    body = bundle(manifest.model_dump_json().encode(), CONTENT[:-1] + b"?")
    server = Server(answering(body, 200, MEDIA_TYPE), sending(CONTENT))
    async with server.client() as client:
        await client.latest(0, None, 0)
        assert (await client.fetch(1, ENTRY, tmp_path / "delta")).read_bytes() == CONTENT


@pytest.mark.parametrize("body", [b"", b"short", b"\xff" * 20, bundle(b'{"weight_version": 1}', b"")[:12]])
async def test_a_bundle_that_is_none_is_refused(body: bytes) -> None:
    server = Server(answering(body + b'"weight_version"', 200, MEDIA_TYPE))
    async with server.client() as client:
        with pytest.raises(ContractError):
            await client.latest(0, None, 0)


async def test_a_long_download_measures_the_line_and_a_short_one_does_not(tmp_path: Path) -> None:
    short = FileEntry(name="delta.bin", kind=FileKind.DELTA, size_bytes=4, digest=digest_bytes(CONTENT[:4]))
    server = Server(sending(CONTENT[:4]), sending(CONTENT))
    async with server.client() as client:
        await client.fetch(1, short, tmp_path / "short")
        assert client.line_bytes_per_s == 0
        await client.fetch(1, ENTRY, tmp_path / "long")
        assert client.line_bytes_per_s > len(CONTENT) / 60


def manifest_with(entry: FileEntry) -> WeightManifest:
    return WeightManifest(
        run_id="run",
        weight_version=1,
        parent_version=0,
        parent_digest="0" * 64,
        digest="1" * 64,
        tensors=(),
        files=(entry,),
        created_at=0.0,
    )
