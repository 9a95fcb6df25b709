#!/usr/bin/env python3
"""Whether the part in this container works: for health checks and probes.

    sept-health services     Redis answers and the weight store is there
    sept-health learner      the services receive heartbeats of this container's learner
    sept-health generator    the services receive heartbeats of this container's generator: its engine has started

Standard library only, since it runs every few seconds. Exit code 0: healthy; 1: not, with the reason on stderr.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 5.0
SERVICES_URL = "http://127.0.0.1:8400"
"""With the default of services.port, which a test compares: this file is copied into images without the rest."""


def main(part: str) -> str:
    """Why the part is not healthy; empty when it is."""
    try:
        if part == "services":
            ask("/readyz")
            return ""
        return unheard(ask("/v1/status"), part, socket.gethostname())
    except (OSError, ValueError, KeyError) as error:  # URLError is an OSError
        return f"{type(error).__name__}: {error}"


def ask(path: str) -> dict[str, Any]:
    """The services' JSON answer."""
    token = os.environ.get("SEPT_SERVICES__TOKEN", "")
    url = os.environ.get("SEPT_SERVICES__URL", SERVICES_URL)
    request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - ours
    with _opener(url).open(request, timeout=TIMEOUT_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Without the environment's proxies for this container itself and for names of its own network."""
    host = urlsplit(url).hostname or ""
    direct = host.startswith("127.") or "." not in host
    return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if direct else []))


def unheard(status: dict[str, Any], part: str, host: str) -> str:
    """Why this host's part counts as lost in the status; empty when it does not."""
    if part == "learner":
        heard = [(status["learner"], status["learner_lost"])] if status["learner"] else []
    else:
        heard = [(generator["heartbeat"], generator["lost"]) for generator in status["generators"]]
    here = [lost for heartbeat, lost in heard if heartbeat["host"] == host]
    if not here:
        return f"the services have not heard of a {part} on {host}"
    return f"the {part} on {host} has fallen silent" if all(here) else ""


if __name__ == "__main__":
    reason = main(sys.argv[1])
    sys.stderr.write(reason + "\n" if reason else "")
    sys.exit(1 if reason else 0)
