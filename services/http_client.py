"""HTTP clients for a run's own services: when a proxy may be used, and whether it was the services that answered.

Machines of companies set proxy variables for the internet. No proxy leads to this machine itself. And what lies
between two machines (an ingress, a proxy, a login page) answers in the place of services that it cannot reach.
"""

from __future__ import annotations

import socket

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from services.errors import ConfigError
from services.net import hostname_of, is_this_machine

JSON = "application/json"


def open_client(
    url: str,
    *,
    token: str | None,
    timeout: httpx.Timeout | float,
    headers: dict[str, str] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.AsyncClient:
    """A client of the services at `url`, with their token; ConfigError when the proxy variables cannot be used."""
    authorization = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return httpx.AsyncClient(
            base_url=url,
            headers={**(headers or {}), **authorization},
            timeout=timeout,
            transport=transport,
            trust_env=may_use_proxy(url),
        )
    except (httpx.InvalidURL, ValueError, ImportError) as error:  # of a proxy, or of an entry of NO_PROXY
        raise ConfigError(
            f"there is no way to {url}: services.url or a proxy variable of the environment cannot be used ({error})",
            hint="write services.url as http://host:port, and correct or unset HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and "
            "NO_PROXY",
        ) from error


def may_use_proxy(url: str) -> bool:
    """Whether the environment's proxy variables hold for the URL: not for this machine's own addresses and names.

    A name without a dot is one of a local network, such as a service of compose, which no proxy can look up.
    """
    host = hostname_of(url)
    return ("." in host or ":" in host) and host != socket.gethostname() and not is_this_machine(host)


class _Refusal(BaseModel):
    """The body of every refusal of the services."""

    model_config = ConfigDict(extra="forbid")

    error: str
    hint: str = ""


def answered_by_another(response: httpx.Response, body: bytes | None = None) -> str:
    """What answered instead of the services, in words; empty when the answer is theirs.

    Their answers are JSON, the bytes of a file, text or empty; their refusals have a JSON form of their own. `body`
    is that of a refusal.
    """
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    said = f"status {response.status_code} with {kind or 'no content'}, which is not from the services of a run"
    if response.is_success:
        return said if kind == "text/html" else ""
    if response.status_code == httpx.codes.NOT_MODIFIED:
        return ""
    if response.is_redirect:
        return f"status {response.status_code}: a redirect to {response.headers.get('Location', '')[:100]}"
    try:
        _Refusal.model_validate_json(body if body is not None else response.content)
    except ValidationError:
        return said
    return ""
