"""Names of generators that were started by hand."""

from __future__ import annotations

import os
import socket

from deploy.parts import own_generator_id


def test_two_hosts_of_the_same_name_do_not_share_a_generator() -> None:
    """As seen from here: the same host name and the same process id give two names."""
    first, second = own_generator_id(), own_generator_id()
    assert first != second
    for name in (first, second):
        assert name.startswith("generator-")
        assert str(os.getpid()) in name
        assert len(name) <= 100
    assert socket.gethostname()[:3].strip("-._") in first
