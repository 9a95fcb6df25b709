"""Addresses, URLs and listening sockets."""

from __future__ import annotations

import errno
import ipaddress
import socket
from urllib.parse import urlsplit

from services.errors import ConfigError, UnavailableError

LOOPBACK = "127.0.0.1"

BACKLOG = 2048
"""Connections that the kernel holds until they are accepted."""

REDIS_PORT = 6379
REDIS_URL_HINT = "write redis.url as redis://[user:password@]host:port/db, or rediss://... for TLS"


def is_loopback(host: str) -> bool:
    """Whether the address reaches this machine only: 127.0.0.0/8, ::1 or localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_this_machine(host: str) -> bool:
    """Whether `host` is an address of this machine, or a name that always means it; no name is looked up."""
    if is_loopback(host) or host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return not why_not_free(host, 0)


# Ports and sockets


def listen(host: str, port: int, *, setting: str) -> socket.socket:
    """A listening socket, port 0 for a free one; UnavailableError, naming the setting, when it cannot be had."""
    # asyncio sets TCP_NODELAY only on connections whose socket names its protocol. Without it a small answer on a
    # kept-alive connection waits for the peer's delayed acknowledgement, some 40 ms.
    listener = socket.socket(_family(host), socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        hints = {
            errno.EADDRINUSE: f"another program listens there: stop it, or set {setting} to another port (0: any)",
            errno.EACCES: f"ports below 1024 belong to root: set {setting} to a higher one",
            errno.EADDRNOTAVAIL: f"{host} is not an address of this machine",
        }
        hint = hints.get(error.errno or 0, f"check {setting} and the host before it")
        raise UnavailableError(f"cannot listen on {host}:{port}: {error.strerror}", hint=hint) from error
    return listener


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def why_not_free(host: str, port: int) -> str:
    """The operating system's reason not to listen there; empty when the port is free."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or type(error).__name__
    return ""


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


# URLs


def listener_url(listener: socket.socket, *, tls: bool = False) -> str:
    """http[s]://host:port of a bound socket."""
    host, port = listener.getsockname()[:2]
    return _http_url(host, port, tls=tls)


def reachable_url(host: str, port: int, *, tls: bool = False) -> str:
    """http[s]://host:port by which another process on this machine reaches a listener on `host`."""
    return _http_url({"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host), port, tls=tls)  # noqa: S104


def _http_url(host: str, port: int, *, tls: bool) -> str:
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def hostname_of(url: str) -> str:
    """The URL's host without port and brackets; empty when it has none or cannot be read."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def port_of(url: str) -> int | None:
    """The port that the URL names."""
    return urlsplit(url).port


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port"."""
    host, _, port = address.rpartition(":")
    return host, int(port)


def redis_address(url: str) -> str:
    """host:port/db of a Redis URL, or its socket path: fit for messages, as it carries no user or password.

    Raises:
        ConfigError: `url` is not a Redis address.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or REDIS_PORT
    except ValueError:
        # Not chained: the original quotes the URL's authority, password and all.
        raise ConfigError("redis.url cannot be read: its host or port is malformed", hint=REDIS_URL_HINT) from None
    if parts.scheme == "unix":
        return parts.path
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ConfigError(
            f"redis.url is no Redis address: scheme {parts.scheme!r}, host {parts.hostname!r}", hint=REDIS_URL_HINT
        )
    return f"{parts.hostname}:{port}{parts.path if parts.path != '/' else ''}"
