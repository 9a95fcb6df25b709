"""The HTTP client of a run's services: its status, and requests to change it."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import ValidationError

from deploy.endpoints import Endpoints, not_active
from deploy.locks import is_run_locked
from services.contracts import StatusSnapshot
from services.errors import ContractError, UnavailableError
from services.http_client import OtherRunError, answered_by_another, open_client
from services.run_folder import RunFolder

TIMEOUT_S = 5.0
STATUS = "/v1/status"


class RunClient:
    """async with RunClient(endpoints, of_run=folder) as run: snapshot = await run.status()

    `of_run`: the folder whose run must answer. Before the first request the services prove that it is theirs, and
    nothing is sent to anybody else. None: whatever run is served there, at an address from settings.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        of_run: RunFolder | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = endpoints.services_url
        self._http = open_client(
            self._url,
            token=endpoints.token,
            timeout=TIMEOUT_S,
            identity=of_run.run_identity if of_run is not None else None,
            tls_cert=endpoints.tls_cert,
            transport=transport,
        )
        self._of_run = of_run
        self._answered = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def status(self) -> StatusSnapshot:
        """The run as the services see it; UnavailableError when they cannot be asked."""
        answer = await self._ask("GET", STATUS)
        try:
            return StatusSnapshot.model_validate_json(answer.content)
        except ValidationError as error:
            raise ContractError(
                f"{self._url}{STATUS} answers what this release cannot read",
                hint="use the same release of sept for every part",
            ) from error

    async def pause(self) -> None:
        """Let the learner finish its round, then wait."""
        await self._ask("POST", "/v1/control/pause")

    async def resume(self) -> None:
        await self._ask("POST", "/v1/control/resume")

    async def stop(self) -> None:
        """Let the learner finish its round, then end the run."""
        await self._ask("POST", "/v1/control/stop")

    async def checkpoint(self) -> None:
        """Let the learner write a checkpoint when its round is done."""
        await self._ask("POST", "/v1/control/checkpoint")

    async def roll_back(self, weight_version: int) -> None:
        """Let the learner go back to its checkpoint of that version when its round is done."""
        await self._ask("POST", "/v1/control/rollback", {"weight_version": weight_version})

    async def export(self, weight_version: int | None) -> str:
        """Ask for the version (the newest when None) in the run's exports/; returns where it will be."""
        if weight_version is None:
            weight_version = (await self.status()).weight_version
        answer = await self._ask("POST", "/v1/control/export", {"weight_version": weight_version})
        return str(answer.json()["folder"])

    async def scale(self, generators_target: int) -> None:
        """Ask for that many generators; the supervisor starts or drains some."""
        await self._ask("POST", "/v1/control/generators", {"generators_target": generators_target})

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            answer = await self._send(method, path, body)
        except UnavailableError as error:
            moved = isinstance(error, OtherRunError)
            if self._of_run is None or (not moved and (self._answered or is_run_locked(self._of_run))):
                raise  # it is active: its services start, or something is wrong with them
            raise not_active(self._of_run, f"its last address was {self._url}, and now {error.message}") from error
        self._answered = True
        return answer

    async def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"the services at {self._url} do not answer ({type(error).__name__})",
                hint="is the run active? Start it with `sept run`, and see logs/services.log in its folder",
            ) from error
        if another := answered_by_another(answer):
            raise UnavailableError(
                f"{method} {path} at {self._url} was answered by something else: {another}",
                hint="check services.url, and what lies in between (ingress, proxy)",
            )
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise UnavailableError(
                f"the services at {self._url} refuse the token", hint="set SEPT_SERVICES__TOKEN to the run's token"
            )
        if answer.is_error:
            raise _refusal(f"{method} {path} at {self._url}", answer)
        return answer


def _refusal(request: str, answer: httpx.Response) -> UnavailableError:
    """The error of a request that the services refuse, in their words."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        body = answer.json()
        return UnavailableError(str(body["error"]), hint=str(body.get("hint", "")))
    return UnavailableError(f"{request} answered {answer.status_code}: {answer.text[:300]}")
