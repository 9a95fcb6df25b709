"""Over which network interface this host reaches another one."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from services.net import LOOPBACK, is_loopback

SIOCGIFADDR = 0x8915
"""Linux's request for the IPv4 address of an interface; the answer has it in bytes 20 to 24."""
IPV6_ADDRESSES = Path("/proc/net/if_inet6")
"""One line an address: 32 hexadecimal digits, index, prefix, scope, flags, name of the interface."""


def own_address_towards(hosts: Iterable[str]) -> str:
    """This host's address on the way to the first of the hosts that is another machine; loopback when none is.

    No packet is sent: connecting a datagram socket only asks the kernel for the route.
    """
    for host in hosts:
        try:
            found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
        except OSError:  # a name that this host does not know
            continue
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                try:
                    probe.connect(address)
                except OSError:
                    continue
                own = str(probe.getsockname()[0])
            if not is_loopback(own):
                return own
    return LOOPBACK


def interface_of(address: str) -> str:
    """Name of the interface with this address, "lo" for loopback; empty when there is none."""
    if is_loopback(address):
        return "lo"
    wanted = ipaddress.ip_address(address)
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if wanted in _addresses(name)), "")


def _addresses(name: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    lines = IPV6_ADDRESSES.read_text().split("\n") if IPV6_ADDRESSES.exists() else []
    words = [line.split() for line in lines]
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [
        ipaddress.IPv6Address(bytes.fromhex(word[0])) for word in words if word and word[-1] == name
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
        except OSError:  # it has no IPv4 address
            return found
    return [ipaddress.IPv4Address(answer[20:24]), *found]
