"""endpoints.json belongs to the supervisor that wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import endpoints
from deploy.endpoints import Endpoints
from services.errors import ConfigError
from services.run_folder import RunFolder

MINE = Endpoints(redis_url="redis://:secret@h:1", services_url="http://h:2", token="hush")
ANOTHERS = MINE.model_copy(update={"services_url": "http://h:3"})


def test_a_supervisor_removes_its_own_file_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    endpoints.write(folder, ANOTHERS)
    endpoints.remove(folder, MINE)
    assert endpoints.read(folder) == ANOTHERS
    endpoints.remove(folder, ANOTHERS)
    assert endpoints.read(folder) is None
    endpoints.remove(folder, ANOTHERS)


def test_a_file_that_cannot_be_read_is_named_and_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.endpoints.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        endpoints.read(folder)
    endpoints.remove(folder, MINE)
    assert folder.endpoints.exists()


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(MINE)
    assert "hush" not in str(MINE)
