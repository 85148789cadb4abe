"""What goes over the socket between gateway and egress process, and what is refused of it."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from app.core.network_rules import NetworkRule
from app.egress import protocol
from app.egress.protocol import (
    CloseNetwork,
    EventsDropped,
    Hello,
    InvalidMessage,
    KnownNames,
    NameGiven,
    NetworkClosed,
    NetworkEventTold,
    NetworkNotOpened,
    NetworkOpened,
    OpenNetwork,
    Order,
    Report,
)

EVENT: dict[str, Any] = {
    "at": 1.5,
    "kind": "connection",
    "name": "index.example.org",
    "address": None,
    "port": 443,
    "verdict": "refused",
    "rule": None,
    "reason": "private",
    "bytes_sent": 0,
    "bytes_received": 0,
    "duration_seconds": 0.25,
}
RULES = (NetworkRule("index.example.org", (80, 443)), NetworkRule("203.0.113.0/24", (5432,), raw=True))
ORDERS: list[Order] = [
    KnownNames("a", {"index.example.org": "198.18.0.1"}),
    OpenNetwork("a", RULES, (80, 443, 5432), {"index.example.org": "198.18.0.1"}),
    CloseNetwork("a"),
]
REPORTS: list[Report] = [
    Hello(),
    NetworkOpened("a"),
    NetworkNotOpened("a", "there are no descriptors left"),
    NameGiven("a", "index.example.org", "198.19.255.255"),
    NetworkEventTold("a", EVENT),
    EventsDropped("a", 7),
    NetworkClosed("a"),
]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
def test_order_arrives_as_it_was_sent(order: Order) -> None:
    assert protocol.decode_order(protocol.encode(order)) == order


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_report_arrives_as_it_was_sent(report: Report) -> None:
    assert protocol.decode_report(protocol.encode(report)) == report


def test_all_names_of_a_sandbox_fit_into_packets() -> None:
    label = "a" * 57
    names = {
        f"{n:05d}.{label}.{label}.{label}.{label}.example.com"[-253:]: f"198.18.{n // 256}.{n % 256}"
        for n in range(protocol.MAX_NAMES)
    }
    rules = tuple(NetworkRule(f"{n:03d}.{label}.{label}.{label}.{label}.com", tuple(range(1, 17))) for n in range(64))
    packets = protocol.open_packets(OpenNetwork("a", rules, tuple(range(1, 17)), names))
    assert max(map(len, packets)) <= protocol.MAX_PACKET
    *known, last = map(protocol.decode_order, packets)
    arrived = {
        name: address for order in known if isinstance(order, KnownNames) for name, address in order.names.items()
    }
    assert arrived == names
    assert last == OpenNetwork("a", rules, tuple(range(1, 17)))


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\xff",
        b"[]",
        b"{",
        b"[" * 60_000,
        b'{"kind":"shutdown","sandbox":"a"}',
        b'{"kind":"close"}',
        b'{"kind":"close","sandbox":""}',
        b'{"kind":"close","sandbox":7}',
        b'{"kind":"close","sandbox":"a","more":1}',
        b'{"kind":["close"],"sandbox":"a"}',
        b'{"kind":"hello","version":1}',
    ],
)
def test_what_is_no_order_is_refused(packet: bytes) -> None:
    with pytest.raises(InvalidMessage):
        protocol.decode_order(packet)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rules", None),
        ("rules", ["index.example.org:443"]),
        ("rules", [{"host": "a.example", "ports": [443], "raw": False}] * 65),
        ("rules", [{"host": "a b", "ports": [443], "raw": False}]),
        ("rules", [{"host": "10.0.0.0/8", "ports": [443], "raw": False}]),
        ("ports", [0]),
        ("ports", [True]),
        ("ports", [443, 443]),
        ("ports", list(range(1, 18))),
        ("ports", "443"),
        ("names", {"a.example": "10.0.0.1"}),
        ("names", {"a.example": "::1"}),
        ("names", {"a.example": 5}),
        ("names", {"": "198.18.0.1"}),
        ("names", ["a.example"]),
    ],
)
def test_order_with_a_wrong_field_is_refused(field: str, value: object) -> None:
    right = json.loads(protocol.encode(ORDERS[1]))
    protocol.decode_order(json.dumps(right).encode())
    with pytest.raises(InvalidMessage):
        protocol.decode_order(json.dumps(right | {field: value}).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("at", "now"),
        ("at", float("inf")),
        ("kind", "packet"),
        ("name", "x" * 2000),
        ("port", 65536),
        ("verdict", "maybe"),
        ("bytes_sent", -1),
        ("bytes_sent", True),
        ("duration_seconds", None),
        ("more", 1),
    ],
)
def test_event_with_a_wrong_field_is_refused(field: str, value: object) -> None:
    told = protocol.encode(NetworkEventTold("a", EVENT | {field: value}))
    with pytest.raises(InvalidMessage):
        protocol.decode_report(told)


def test_descriptors_travel_in_their_order(pair: tuple[socket.socket, socket.socket]) -> None:
    read, write = os.pipe()
    protocol.send(pair[0], b"{}", [read, write])
    packet, descriptors = protocol.receive(pair[1])
    assert packet == b"{}"
    os.write(descriptors[1], b"x")
    assert os.read(descriptors[0], 1) == b"x"
    assert not any(os.get_inheritable(descriptor) for descriptor in descriptors)
    protocol.close([read, write, *descriptors])


def test_descriptors_that_do_not_fit_are_all_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    read, write = os.pipe()
    protocol.send(pair[0], b"{}", [read] * protocol.MAX_DESCRIPTORS)
    lowest = os.dup(read)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 4, hard))
    try:
        packet, descriptors = protocol.receive(pair[1])
        free = os.dup(read)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (packet, descriptors) == (b"{}", [])
    assert free == lowest
    protocol.close([read, write, free])


def test_packet_that_is_too_long_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    protocol.send(pair[0], b"x" * (protocol.MAX_PACKET + 1))
    with pytest.raises(InvalidMessage):
        protocol.receive(pair[1])


def test_peer_that_is_gone_reads_as_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    assert protocol.receive(pair[1]) == (b"", [])
