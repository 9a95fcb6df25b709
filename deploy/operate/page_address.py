"""Where a person finds the page of an active run, and how to reach it from another machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from deploy.endpoints import Endpoints
from services.net import is_loopback


def page_lines(where: Endpoints, environ: Mapping[str, str] | None = None) -> list[str]:
    """The page's address; over SSH also the command that brings it to the person's own machine.

    page: http://127.0.0.1:8123/
    from your own machine: ssh -L 8123:127.0.0.1:8123 you@gpu-box, then open http://127.0.0.1:8123/
    """
    address = where.services_url.rstrip("/") + "/"
    asks = " (it asks for the token in endpoints.json of the run's folder)" if where.token else ""
    lines = [f"page: {address}{asks}"]
    connection = (os.environ if environ is None else environ).get("SSH_CONNECTION", "").split()
    parts = urlsplit(address)
    if connection and parts.hostname and is_loopback(parts.hostname):
        # The third word is this machine's address as the person's own machine knows it.
        host = connection[2] if len(connection) == 4 else socket.gethostname()
        user = (os.environ if environ is None else environ).get("USER", "")
        there = f"{user}@{host}" if user else host
        lines.append(f"from your own machine: ssh -L {parts.port}:{parts.netloc} {there}, then open {address}")
    return lines
