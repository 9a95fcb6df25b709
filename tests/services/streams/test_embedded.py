"""The private server: its files, its secret, what survives its death."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.errors import ConfigError
from services.net import free_port
from services.streams.connection import connect
from services.streams.embedded import EmbeddedRedis

PASSWORD = "correct-horse-battery"


def test_the_password_is_in_a_private_file_and_not_in_argv(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", 7000, PASSWORD)
    argv = server.command()
    assert not any(PASSWORD in word for word in argv)
    config = Path(argv[1])
    assert PASSWORD in config.read_text()
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700
    assert server.url == f"redis://:{PASSWORD}@127.0.0.1:7000/0"


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "valkey.conf").write_text("x" * 10_000)
    (tmp_path / "valkey.conf").chmod(0o644)
    config = Path(EmbeddedRedis(tmp_path, 7000, PASSWORD).command()[1])
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert "xxx" not in config.read_text()


@pytest.mark.parametrize("password", ["", "short", 'quote"and-more-characters', "line\nbreak-and-more-characters"])
def test_a_password_that_could_change_the_configuration_is_refused(tmp_path: Path, password: str) -> None:
    with pytest.raises(ConfigError, match="password"):
        EmbeddedRedis(tmp_path, 7000, password)


def test_a_path_that_could_change_the_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot live"):
        EmbeddedRedis(tmp_path / "a\nport 1", 7000, PASSWORD).command()


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / 'odd "name" \\ here', free_port(), PASSWORD)
    process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
    with connect(server.url) as client:
        client.set("kept", "yes")
        client.execute_command("WAITAOF", 1, 0, 5000)
    process.kill()
    process.wait()
    process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
    with connect(server.url) as client:
        assert client.get("kept") == b"yes"
        assert client.config_get("bind")["bind"] == "127.0.0.1"
        kept = ("appendonly", "appendfsync", "maxmemory-policy", "save", "protected-mode")
        found = client.config_get(*kept)
    assert [found[name] for name in kept] == ["yes", "everysec", "noeviction", "", "yes"], "nothing is ever evicted"
    process.kill()
    process.wait()


@pytest.mark.parametrize("damage", [b"*3\r\n$3\r\nSE", b"\0" * 40])
@pytest.mark.parametrize("name", ["appendonly.aof.1.incr.aof", "appendonly.aof.1.base.rdb", "appendonly.aof.manifest"])
def test_a_server_whose_file_is_damaged_starts_without_it(name: str, damage: bytes, tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", free_port(), PASSWORD)
    with started(server, tmp_path / "first.log"), connect(server.url) as client:
        for number in range(100):
            client.set(f"key-{number}", "x" * 100)
        client.execute_command("WAITAOF", 1, 0, 5000)
    path = server.folder / "appendonlydir" / name
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + damage + content[middle + len(damage) :])
    with started(server, tmp_path / "second.log") as process:
        if process.wait(20) == 0:
            pytest.fail("it ended well")
    said = server.set_aside_damaged((tmp_path / "second.log").read_text())
    assert said.startswith("the append-only file is damaged and now in "), (tmp_path / "second.log").read_text()
    with started(server, tmp_path / "third.log"), connect(server.url) as client:
        assert client.dbsize() == 0
    assert server.set_aside_damaged((tmp_path / "third.log").read_text()) == "", "it started"
    assert [path.name for path in server.folder.glob("damaged-*/*") if path.name == name]


@pytest.mark.parametrize(
    "output", ["", "Can't open the append-only file: No space left on device", "Failed listening on port 6379"]
)
def test_a_file_that_is_not_the_cause_stays_in_its_place(output: str, tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path, free_port(), PASSWORD)
    (tmp_path / "appendonlydir").mkdir()
    assert server.set_aside_damaged(output) == ""
    assert (tmp_path / "appendonlydir").is_dir()


@contextmanager
def started(server: EmbeddedRedis, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(server.command(), stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
