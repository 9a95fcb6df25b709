"""Where a local run listens: endpoints.json of its folder, readable by its owner only.

`sept run` writes the file and removes it at the end. One that was killed leaves it, and another program may listen
there by now: whoever reads the file lets the services prove that they are the run's before it sends them anything.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from services import durable
from services.errors import ConfigError, UnavailableError
from services.run_folder import RunFolder


class Endpoints(BaseModel):
    """Addresses and secrets of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    redis_url: str
    services_url: str
    token: str | None = None
    generator_redis_url: str | None = None
    """What a generator that joins gets instead of `redis_url`; None: the same."""
    generator_token: str | None = None
    """Likewise for `token`."""
    watch_token: str | None = None
    tls_cert: Path | None = None
    """The services' certificate, where they speak HTTPS."""

    def __repr__(self) -> str:
        return f"Endpoints(services_url={self.services_url!r})"  # never the secrets

    __str__ = __repr__


def read(folder: RunFolder) -> Endpoints | None:
    """The endpoints in the folder, unchecked; None when there are none."""
    try:
        return Endpoints.model_validate_json(folder.endpoints.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{folder.endpoints} cannot be read ({type(error).__name__})",
            hint="only the user who started the run may join it; remove the file if no run is active",
        ) from error


def not_active(folder: RunFolder, because: str = "") -> UnavailableError:
    """The error for a request to a run that nobody runs."""
    return UnavailableError(
        f"no run is active in {folder.path}" + (f": {because}" if because else ""),
        hint=f"start it again with `sept run {folder.config}`",
    )


def write(folder: RunFolder, endpoints: Endpoints) -> None:
    """Publish the endpoints to this user's other processes (mode 0600)."""
    durable.write_file(folder.endpoints, endpoints.model_dump_json() + "\n", mode=0o600)


def remove(folder: RunFolder, endpoints: Endpoints) -> None:
    """The run with these endpoints has ended; the file of another supervisor, which took the folder over, stays."""
    with contextlib.suppress(ConfigError):
        if read(folder) == endpoints:
            folder.endpoints.unlink(missing_ok=True)
