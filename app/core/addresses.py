"""Which addresses no sandbox may reach through the egress process, unless the operator permits their network.

Sources: the IANA registries of special-purpose addresses (RFC 6890), of IPv6 global unicast (only 2000::/3 is given
out), and the clouds' documents on their metadata services.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network

from app.core.hosts import IPAddress, IPNetwork, is_within


def _nets(**by_reason: str) -> tuple[tuple[str, IPNetwork], ...]:
    return tuple((reason, ip_network(net)) for reason, nets in by_reason.items() for net in nets.split())


# Of two that fit the first is told. 168.63.129.16 is a public address at which Azure's machines find their host.
# 192.0.0.192 is that of Oracle's, 100.100.100.200 of Alibaba's. Documentation networks count as public.
_FORBIDDEN = _nets(
    metadata="169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16 192.0.0.192 fd00:ec2::254 fd20:ce::254",
    unspecified="0.0.0.0/8 ::",
    loopback="127.0.0.0/8 ::1",
    private="10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7 fec0::/10",
    link_local="169.254.0.0/16 fe80::/10",
    shared="100.64.0.0/10",
    benchmarking="198.18.0.0/15 2001:2::/48",
    multicast="224.0.0.0/4 ff00::/8",
    broadcast="255.255.255.255",
    reserved="240.0.0.0/4 192.0.0.0/24",
)
_GLOBAL = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
# Their addresses end with an IPv4 address: NAT64, SIIT, and the old IPv4-compatible form.
_TRANSLATED = (_NAT64, IPv6Network("::ffff:0:0:0/96"), IPv6Network("::/96"))

REASONS = (*dict.fromkeys(reason for reason, _ in _FORBIDDEN), "own")


def unmapped(address: IPAddress) -> IPAddress:
    """::ffff:192.0.2.1 is 192.0.2.1, as the kernel tells it on a socket of both families."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def forbidden(
    address: IPAddress, permitted: Iterable[IPNetwork] = (), own: Container[IPAddress] = frozenset()
) -> str | None:
    """Why an address must not be dialled, one of REASONS, or None. `own` has the machine's own addresses.

    An address that carries another one (NAT64, 6to4, Teredo) is judged by both. A network of `permitted` permits what
    is written in it, and not what is carried.
    """
    address = unmapped(address)
    if any(address in net for net in permitted):
        return None
    if address in own:
        return "own"
    for reason, net in _FORBIDDEN:
        if address in net:
            return reason
    for inner in _carried(address):
        if why := forbidden(inner, (), own):
            return why
    return None if _is_given_out(address) else "reserved"


def forbidden_net(net: IPNetwork, permitted: Iterable[IPNetwork] = ()) -> str | None:
    """Why nothing in a network can be reached, or None where a part of it can be."""
    if any(net.version == own.version and net.overlaps(own) for own in permitted):
        return None
    return next((reason for reason, wide in _FORBIDDEN if is_within(net, wide)), None)


def _carried(address: IPAddress) -> Iterator[IPv4Address]:
    if isinstance(address, IPv4Address):
        return
    if any(address in net for net in _TRANSLATED):
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour is not None:
        yield address.sixtofour
    yield from address.teredo or ()


def _is_given_out(address: IPAddress) -> bool:
    return isinstance(address, IPv4Address) or address in _GLOBAL or address in _NAT64
