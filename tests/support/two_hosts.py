"""Two hosts on one machine: network namespaces with an address each and a cable between them; root makes them."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESSES = ("10.213.77.1", "10.213.77.2")


def why_not() -> str:
    """Why this machine cannot have them; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip is not installed: on Debian, apt-get install iproute2"
    name = f"sept-try-{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return "" if tried.returncode == 0 else f"no network namespace can be made: {tried.stderr.strip()}"


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Names of two namespaces, which have ADDRESSES; they are gone after the block."""
    mark = secrets.token_hex(3)
    hosts = (f"sept-{mark}-0", f"sept-{mark}-1")
    ends = (f"s{mark}0", f"s{mark}1")
    try:
        for host in hosts:
            _ip("netns", "add", host)
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for host, end, address in zip(hosts, ends, ADDRESSES, strict=True):
            _ip("link", "set", end, "netns", host)
            _ip("-n", host, "address", "add", f"{address}/24", "dev", end)
            _ip("-n", host, "link", "set", end, "up")
            _ip("-n", host, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host], capture_output=True)


def start_on(host: str, argv: list[str], *, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """The command on that host; what it says is appended to the log."""
    with log.open("ab") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", host, *argv], env={**os.environ, **env}, stdout=output, stderr=subprocess.STDOUT
        )


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
