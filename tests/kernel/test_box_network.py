"""The network in which boxes find the proxy: one address on which nothing but its socket can be reached."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from app.launcher.kernel.syscalls import CLONE_NEWNET, setns
from app.serving.box_network import NoBoxNetwork, listen_for_boxes
from app.settings.egress import PROXY_PORT, proxy_host
from tests.kernel.host import until
from tests.require import require
from tests.service import PATIENCE


def free_networks() -> Iterator[IPv4Network]:
    """Of 4 addresses, in which this host has no address and no route. Another run on this host begins elsewhere."""
    with IPRoute() as host:
        routes = [route for route in host.get_routes(family=socket.AF_INET) if route["dst_len"]]
    taken = [IPv4Network((route.get_attr("RTA_DST"), route["dst_len"]), strict=False) for route in routes]
    for base in (0x0AD50000, 0xAC1D0000, 0xC0A88000):  # 10.213.0.0, 172.29.0.0, 192.168.128.0
        for number in range(8192):
            network = IPv4Network((base + (os.getpid() + number) % 8192 * 4, 30))
            if not any(map(network.overlaps, taken)):
                yield network


NETWORK = next(free_networks())
PROXY, HOST = str(proxy_host(NETWORK)), str(NETWORK[1])
LINK = f"bt-{os.getpid()}"
_SIOCGSKNS = 0x894C  # the network namespace of a socket: linux/sockios.h


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    require("root", os.geteuid() == 0, "namespaces need root")
    with listen_for_boxes(NETWORK, LINK) as opened:
        yield opened


def links() -> list[str]:
    with IPRoute() as host:
        return [link.get_attr("IFLA_IFNAME") for link in host.get_links()]


def inside(listener: socket.socket, read: Callable[[], None]) -> None:
    """Calls it in the namespace of the socket."""
    namespace = fcntl.ioctl(listener, _SIOCGSKNS)

    def run() -> None:
        setns(namespace, CLONE_NEWNET)
        read()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    os.close(namespace)


def refused_ports(address: str) -> int:
    """How many of all ports refuse a connection."""
    refused = 0
    for port in range(1, 65_536):
        with socket.socket() as program:
            try:
                program.connect((address, port))
            except ConnectionRefusedError:
                refused += 1
    return refused


def test_only_the_proxys_port_answers_of_all_ports_of_its_address(listener: socket.socket) -> None:
    with socket.create_server(("0.0.0.0", 0)) as everywhere:  # what a service of the host does
        port = everywhere.getsockname()[1]
        socket.create_connection((HOST, port), PATIENCE).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((PROXY, port), PATIENCE)
    assert refused_ports(PROXY) == 65_534
    with socket.create_connection((PROXY, PROXY_PORT), PATIENCE) as program:
        accepted, sender = listener.accept()
        with accepted:
            assert (sender[0], accepted.getsockname()) == (HOST, program.getpeername())


def test_namespace_has_one_socket_and_one_address_and_leads_nowhere(listener: socket.socket) -> None:
    found: dict[str, list[str]] = {}
    state: dict[str, object] = {}

    def read() -> None:
        for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "udplite", "packet"):
            with contextlib.suppress(FileNotFoundError):
                found[kind] = Path(f"/proc/thread-self/net/{kind}").read_text().splitlines()[1:]
        state["forwards"] = Path("/proc/sys/net/ipv4/ip_forward").read_text()
        with IPRoute() as here:
            state["addresses"] = [address.get_attr("IFA_ADDRESS") for address in here.get_addr()]
            mains = [route for route in here.get_routes() if route.get_attr("RTA_TABLE") == 254]
            state["routes"] = [(route.get_attr("RTA_DST"), route["dst_len"]) for route in mains]

    inside(listener, read)
    assert {kind: len(sockets) for kind, sockets in found.items() if sockets} == {"tcp": 1}
    assert state == {
        "forwards": "0\n",
        "addresses": [PROXY],
        "routes": [(str(NETWORK.network_address), 30)],
    }


@pytest.mark.parametrize(("ttl", "dropped"), [(255, 0), (254, 1), (64, 1)])
def test_packet_that_somebody_forwarded_is_not_taken(listener: socket.socket, ttl: int, dropped: int) -> None:
    """It has lost one of its TTL at least. Here the program sends it as it would arrive."""
    before = ttl_drops(listener)
    listener.setblocking(False)
    with socket.socket() as program:
        program.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        program.setblocking(False)
        assert program.connect_ex((PROXY, PROXY_PORT)) in (0, errno.EINPROGRESS)
        if dropped:
            until(lambda: ttl_drops(listener) > before, "a dropped packet")
            with pytest.raises(BlockingIOError):
                listener.accept()
        else:
            until(lambda: program.connect_ex((PROXY, PROXY_PORT)) in (0, errno.EISCONN), "a connection")
            assert ttl_drops(listener) == before
            listener.accept()[0].close()


def ttl_drops(listener: socket.socket) -> int:
    """Packets that the sockets of the namespace did not take for their TTL."""
    found: list[int] = []

    def read() -> None:
        names, counts = (line.split() for line in Path("/proc/thread-self/net/netstat").read_text().splitlines()[:2])
        found.append(int(counts[names.index("TCPMinTTLDrop")]))

    inside(listener, read)
    return found[0]


def test_host_has_no_other_address_by_it(listener: socket.socket) -> None:
    with IPRoute() as host:
        (index,) = host.link_lookup(ifname=LINK)
        assert [address.get_attr("IFA_ADDRESS") for address in host.get_addr(index=index)] == [HOST]


def test_nothing_is_left_when_the_last_descriptor_is_closed(listener: socket.socket) -> None:
    assert LINK in links()
    kept = listener.dup()
    listener.close()
    socket.create_connection((PROXY, PROXY_PORT), PATIENCE).close()
    with IPRoute() as told:
        told.bind()
        kept.close()
        while LINK in links():  # the kernel takes a namespace apart after its last socket
            told.get()


def test_what_an_earlier_life_left_is_replaced(listener: socket.socket) -> None:
    with listen_for_boxes(NETWORK, LINK) as second:
        socket.create_connection((PROXY, PROXY_PORT), PATIENCE).close()
        second.settimeout(PATIENCE)
        second.accept()[0].close()


def test_link_may_vanish_while_it_is_replaced(listener: socket.socket) -> None:
    for _ in range(10):
        opened = listen_for_boxes(NETWORK, LINK)
        opened.close()  # the kernel takes a namespace apart a moment later


def test_network_that_the_host_uses_is_refused_by_name(listener: socket.socket) -> None:
    with pytest.raises(NoBoxNetwork, match=f"{NETWORK} overlaps with .*BULKHEAD_EGRESS__BOXLITE_NETWORK"):
        listen_for_boxes(NETWORK, f"{LINK}b")
    assert f"{LINK}b" not in links()


def test_service_without_the_capability_is_told_what_it_takes() -> None:
    require("root", os.geteuid() == 0, "namespaces need root")
    code = (
        "from ipaddress import IPv4Network; from app.serving.box_network import *\n"
        f"try: listen_for_boxes(IPv4Network('{NETWORK}'), '{LINK}')\n"
        "except NoBoxNetwork as error: print(error)"
    )
    command = ["setpriv", "--bounding-set", "-net_admin", sys.executable, "-c", code]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said == "its network cannot be made: Operation not permitted; it takes root with CAP_NET_ADMIN\n"
    assert LINK not in links()
