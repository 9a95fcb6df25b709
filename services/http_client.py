"""HTTP clients for a run's own services: when a proxy may be used, whom to trust, and whether the services answered.

Machines of companies set proxy variables for the internet. No proxy leads to this machine itself. And what lies
between two machines (an ingress, a proxy, a login page) answers in the place of services that it cannot reach.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from services.errors import ConfigError, UnavailableError
from services.net import hostname_of, is_this_machine
from services.run_folder import RunIdentity

JSON = "application/json"
HEALTH_PATH = "/healthz"
"""Where services also prove which run is theirs: the one route that needs no token."""
END_OF_CERTIFICATE = "-----END CERTIFICATE-----"


class OtherRunError(UnavailableError):
    """The services at the address are those of another run."""


class NoServicesError(UnavailableError):
    """What answers at the address are no services: an ingress that does not find them, or another program."""


class TokenForRun(httpx.Auth):
    """Sends the token to nobody but the services of the run `identity`, who prove that before the first request.

    OtherRunError or NoServicesError when they do not.
    """

    def __init__(self, token: str | None, identity: RunIdentity) -> None:
        self._token = token
        self._unproved: RunIdentity | None = identity

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """The question, if it is to be asked, then the request."""
        if self._unproved is not None:
            challenge = secrets.token_hex(16)
            asked = request.url.copy_with(path=HEALTH_PATH, query=f"challenge={challenge}".encode())
            answer = yield httpx.Request("GET", asked, extensions=request.extensions)
            await answer.aread()
            _check_proof(self._unproved, challenge, answer)
            self._unproved = None
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


def _check_proof(identity: RunIdentity, challenge: str, answer: httpx.Response) -> None:
    at = answer.url.copy_with(path="", query=None)
    try:
        said = json.loads(answer.content)
        run_id, proof = f"run {str(said['run_id'])[:128]}", str(said["proof"])
    except (ValueError, KeyError, TypeError) as error:
        another = answered_by_another(answer) or f"status {answer.status_code} without saying of which run it is"
        raise NoServicesError(
            f"what answers at {at} are not the services of run {identity.run_id}: {another}",
            hint="start the run with `sept run`, or check services.url, and what lies in between (ingress, proxy)",
        ) from error
    if hmac.compare_digest(proof.encode(), identity.proof(challenge).encode()):
        return
    if run_id == f"run {identity.run_id}":
        run_id = "a program that only claims to be it"
    raise OtherRunError(
        f"the services at {at} are those of {run_id}, not of {identity.run_id}",
        hint="the run is not active any more: start it with `sept run`, or set services.url to its address",
    )


def open_client(
    url: str,
    *,
    token: str | None,
    timeout: httpx.Timeout | float,
    identity: RunIdentity | None = None,
    tls_cert: Path | None = None,
    headers: dict[str, str] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.AsyncClient:
    """A client of the services at `url`, with their token; ConfigError when the proxy variables cannot be used.

    `identity`: the run whose services must be there. `tls_cert`: certificate to trust besides the system's.
    """
    authorization = {"Authorization": f"Bearer {token}"} if token and identity is None else {}
    try:
        return httpx.AsyncClient(
            base_url=url,
            headers={**(headers or {}), **authorization},
            auth=TokenForRun(token, identity) if identity is not None else None,
            timeout=timeout,
            transport=transport,
            trust_env=may_use_proxy(url),
            verify=trusting(tls_cert, url),
        )
    except (httpx.InvalidURL, ValueError, ImportError) as error:  # of a proxy, or of an entry of NO_PROXY
        raise ConfigError(
            f"there is no way to {url}: services.url or a proxy variable of the environment cannot be used ({error})",
            hint="write services.url as http://host:port, and correct or unset HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and "
            "NO_PROXY",
        ) from error


def trusting(tls_cert: Path | None, url: str) -> ssl.SSLContext | bool:
    """Whom a client of `url` trusts: the system's authorities, and the certificate in the file.

    On this machine the certificate itself is enough: it names the host for others, and not 127.0.0.1.
    """
    if tls_cert is None or not url.startswith("https:"):
        return True
    try:
        if not is_this_machine(hostname_of(url)):
            context = ssl.create_default_context()
            context.load_verify_locations(tls_cert)
            return context
        first, end, _ = tls_cert.read_text().partition(
            END_OF_CERTIFICATE
        )  # the services' own; its authority may follow
        context = ssl.create_default_context(cadata=first + end)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"services.tls_cert {tls_cert} cannot be used: {error}", hint="name a PEM file with the certificate"
        ) from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


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
