"""The HTTP client of a run's services: its status, and requests to change it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import ValidationError

from deploy.endpoints import Endpoints
from services.contracts import StatusSnapshot
from services.errors import ContractError, UnavailableError

TIMEOUT_S = 5.0


class RunClient:
    """async with RunClient(endpoints) as run: snapshot = await run.status()"""

    def __init__(self, endpoints: Endpoints, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {endpoints.token}"} if endpoints.token else {}
        self._url = endpoints.services_url
        self._http = httpx.AsyncClient(base_url=self._url, headers=headers, timeout=TIMEOUT_S, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def status(self) -> StatusSnapshot:
        """The run as the services see it; UnavailableError when they cannot be asked."""
        answer = await self._ask("GET", "/v1/status")
        try:
            return StatusSnapshot.model_validate_json(answer.content)
        except ValidationError as error:
            raise ContractError(
                f"{self._url}/v1/status answers what this release cannot read",
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
            answer = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"the services at {self._url} do not answer ({type(error).__name__})",
                hint="is the run active? Start it with `sept run`, and see logs/services.log in its folder",
            ) from error
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise UnavailableError(
                f"the services at {self._url} refuse the token", hint="set SEPT_SERVICES__TOKEN to the run's token"
            )
        if answer.is_error:
            raise UnavailableError(f"{method} {path} at {self._url} answered {answer.status_code}: {answer.text[:300]}")
        return answer
