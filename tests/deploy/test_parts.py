"""How parts are started: names of generators that were started by hand, the learner's environment."""

from __future__ import annotations

import os
import socket

import pytest

from deploy.parts import own_generator_id, start_learner
from deploy.settings import Settings
from services.errors import ConfigError


def test_two_hosts_of_the_same_name_do_not_share_a_generator() -> None:
    """As seen from here: the same host name and the same process id give two names."""
    first, second = own_generator_id(), own_generator_id()
    assert first != second
    for name in (first, second):
        assert name.startswith("generator-")
        assert str(os.getpid()) in name
        assert len(name) <= 100
    assert socket.gethostname()[:3].strip("-._") in first


@pytest.mark.parametrize(
    ("before", "after"), [(None, "expandable_segments:True"), ("backend:native", "backend:native")]
)
def test_a_learner_grows_its_segments_of_memory_unless_told_otherwise(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("PYTORCH_ALLOC_CONF", None)
    if before is not None:
        os.environ["PYTORCH_ALLOC_CONF"] = before
    with pytest.raises(ConfigError, match=r"model\.path"):
        start_learner(Settings())
    assert os.environ["PYTORCH_ALLOC_CONF"] == after
