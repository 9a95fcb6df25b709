"""The interface by which ranks of several hosts connect is that on the way to the other hosts."""

from __future__ import annotations

import socket

import pytest

from deploy.local.interfaces import interface_of, own_address_towards
from services.net import LOOPBACK


def test_the_way_to_this_machine_is_loopback() -> None:
    assert own_address_towards(["localhost"]) == own_address_towards([]) == LOOPBACK
    assert interface_of(LOOPBACK) == interface_of("::1") == "lo"


def test_the_first_host_that_is_elsewhere_decides() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.77", 9))  # an address for documentation: only the route is asked
        except OSError as error:
            pytest.skip(f"this machine has no network: {error}")
        expected = probe.getsockname()[0]
    found = own_address_towards(["localhost", "no-such-host.invalid", "192.0.2.77"])
    assert found == expected
    assert interface_of(found) in [name for _, name in socket.if_nameindex()]


def test_an_address_of_no_interface_leaves_the_choice_open() -> None:
    assert interface_of("192.0.2.201") == ""
