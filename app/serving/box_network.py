"""The address at which boxes find the proxy of the egress process, and nothing else.

BoxLite's allow lists have no ports. So the address is in a network namespace of its own, where the proxy's listening
socket is the only one. A veth pair leads there from the host. The namespace forwards nothing and has no route but to
the pair. Only the socket holds the namespace: when its last descriptor is closed, the kernel removes both and the pair.

Nobody but the host gets in, also where the host forwards packets and writes its own address into them (masquerading, as
for containers). The host sends packets there with the largest TTL, the socket takes no others, and who forwards a
packet takes one off (RFC 5082).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from app.launcher.kernel.syscalls import CLONE_NEWNET, unshare
from app.settings.egress import PROXY_PORT, proxy_host

_BACKLOG = 1024
_LARGEST_TTL = 255
_IP_MINTTL = 21  # linux/in.h
_INSIDE = "proxy"  # the name of the namespace's end
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_IPV6 = Path("/proc/sys/net/ipv6/conf")


class NoBoxNetwork(Exception):
    """`str(error)` says what to do."""


def listen_for_boxes(network: IPv4Network, link: str) -> socket.socket:
    """Makes the namespace, and returns the socket that listens there. `link` names the host's end of the pair; one that
    is left of an earlier life is removed. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN. Not to be called in a running event
    loop. Raises NoBoxNetwork."""
    try:
        with IPRoute() as host:
            _remove(host, link)
            _check_free(host, network)
            # Threads, for a namespace belongs to a thread. Both end here, and take nothing with them.
            with ThreadPoolExecutor(1) as inside, contextlib.ExitStack() as opened:
                namespace = inside.submit(_new_namespace).result()
                opened.callback(os.close, namespace)
                host.link("add", ifname=link, kind="veth", peer={"ifname": _INSIDE, "net_ns_fd": namespace})
                listener = inside.submit(_listen, network).result()
                opened.push(lambda *error: listener.close() if any(error) else None)
                index = _raise_link(host, link, network[1], network.prefixlen)
                only = {"dst": f"{proxy_host(network)}/32", "oif": index}
                host.route("add", **only, metrics={"hoplimit": _LARGEST_TTL})
                return listener
    except (OSError, NetlinkError) as error:
        why = os.strerror(error.code) if isinstance(error, NetlinkError) else error.strerror
        raise NoBoxNetwork(f"its network cannot be made: {why}; it takes root with CAP_NET_ADMIN") from error


def _remove(host: IPRoute, link: str) -> None:
    """Raises NetlinkError."""
    for index in host.link_lookup(ifname=link):
        try:
            host.link("del", index=index)
        except NetlinkError as error:
            if error.code != errno.ENODEV:  # the kernel is just taking the old namespace apart
                raise


def _check_free(host: IPRoute, network: IPv4Network) -> None:
    """Raises NoBoxNetwork when an address or a route of the host is in the network."""
    for taken in _taken(host):
        if taken.overlaps(network):
            why = f"{network} overlaps with {taken}, which this host uses"
            raise NoBoxNetwork(f"{why}: set BULKHEAD_EGRESS__BOXLITE_NETWORK to another network")


def _taken(host: IPRoute) -> Iterator[IPv4Network]:
    for address in host.get_addr(family=socket.AF_INET):
        yield IPv4Network((address.get_attr("IFA_LOCAL"), address["prefixlen"]), strict=False)
    for route in host.get_routes(family=socket.AF_INET):
        if route["dst_len"]:
            yield IPv4Network((route.get_attr("RTA_DST"), route["dst_len"]), strict=False)


def _new_namespace() -> int:
    """Takes this thread into a new network namespace, and returns a descriptor of it."""
    unshare(CLONE_NEWNET)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _listen(network: IPv4Network) -> socket.socket:
    """In the namespace. Its loopback stays down."""
    if _FORWARDING.read_text().strip() != "0":  # a new namespace has the value of the host's
        _FORWARDING.write_text("0\n")
    with IPRoute() as here:
        _raise_link(here, _INSIDE, proxy_host(network), network.prefixlen)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, _LARGEST_TTL)
        listener.bind((str(proxy_host(network)), PROXY_PORT))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _raise_link(there: IPRoute, link: str, address: IPv4Address, prefix: int) -> int:
    """Without IPv6, as far as the kernel has it. Returns its index."""
    with contextlib.suppress(FileNotFoundError):
        (_IPV6 / link / "disable_ipv6").write_text("1\n")
    index: int
    (index,) = there.link_lookup(ifname=link)
    there.addr("add", index=index, address=str(address), prefixlen=prefix)
    there.link("set", index=index, state="up")
    return index
