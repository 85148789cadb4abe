"""What goes over the socket between gateway and egress process, and what is refused of it."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from app.core import http_rules
from app.core.http_rules import HttpRule
from app.core.network_rules import RULES as RULES_OF_ONE
from app.core.network_rules import NetworkRule, parse_rule
from app.core.secrets import SECRETS, VALUE_BYTES
from app.egress import protocol
from app.egress.protocol import (
    MAX_NAMES,
    BytesMoved,
    ChangeNetwork,
    CloseNetwork,
    EventsDropped,
    Hello,
    InvalidMessage,
    KeyPair,
    KnownAuthority,
    KnownCredential,
    KnownNames,
    KnownRules,
    KnownSecret,
    NameGiven,
    NetworkChanged,
    NetworkClosed,
    NetworkEventTold,
    NetworkNotChanged,
    NetworkNotOpened,
    NetworkOpened,
    NetworkSecret,
    NetworkSetup,
    OpenNetwork,
    Order,
    Report,
    SetupAssembly,
)

EVENT: dict[str, Any] = {
    "at": 1.5,
    "kind": "connection",
    "name": "index.example.org",
    "address": None,
    "port": 443,
    "method": None,
    "path": None,
    "verdict": "refused",
    "rule": None,
    "reason": "private",
    "bytes_sent": 0,
    "bytes_received": 0,
    "duration_seconds": 0.25,
}
RULES = (
    NetworkRule("index.example.org", (80, 443)),
    NetworkRule("203.0.113.0/24", (5432,), raw=True),
    NetworkRule("api.example.com", (443,), http=(HttpRule(("GET",), ("/v1/**",)), HttpRule())),
)
SECRET = NetworkSecret("API_TOKEN", "x" * 40, "s3cret", ("api.example.com", "db"))
ORDERS: list[Order] = [
    KnownNames("a", {"index.example.org": "198.18.0.1"}),
    KnownRules("a", RULES),
    KnownAuthority("a", KeyPair("certificate", "key")),
    KnownSecret("a", SECRET),
    KnownSecret("a", NetworkSecret("API_TOKEN", "x" * 40, "", ())),
    KnownCredential("a", "password"),
    OpenNetwork("a", (80, 443, 5432)),
    OpenNetwork("a", (), "c" * 64, 2**63),
    ChangeNetwork("a", ()),
    CloseNetwork("a"),
]
REPORTS: list[Report] = [
    Hello(),
    NetworkOpened("a"),
    NetworkNotOpened("a", "there are no descriptors left"),
    NetworkChanged("a"),
    NetworkNotChanged("a", "there are no descriptors left"),
    NameGiven("a", "index.example.org", "198.19.255.255"),
    NetworkEventTold("a", EVENT),
    EventsDropped("a", 7),
    BytesMoved("a", 2**63),
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
    setup = NetworkSetup(rules, names)
    assert gathered(protocol.open_packets("a", range(1, 17), setup)) == (OpenNetwork("a", tuple(range(1, 17))), setup)


def gathered(packets: Sequence[bytes]) -> tuple[Order, NetworkSetup]:
    """The last order, and what was said before it."""
    assert max(map(len, packets)) <= protocol.MAX_PACKET
    *known, last = map(protocol.decode_order, packets)
    assembly = SetupAssembly()
    for order in known:
        assert isinstance(order, protocol.Known)
        assembly.add(order)
    return last, assembly.take(last.sandbox)


def test_largest_setup_fits_into_packets() -> None:
    """Characters of which JSON makes the most bytes."""
    paths = tuple(f"/{n}" + "é" * 126 for n in range(http_rules.PATHS))
    methods = tuple(f"{'A' * 30}{n}" for n in range(http_rules.METHODS))
    http = (HttpRule(methods, paths), *(HttpRule((*methods[1:], "X" * n)) for n in range(1, http_rules.HTTP_RULES)))
    rules = [parse_rule({**NetworkRule(f"{n}.example.com", (443,), http=http).as_dict()}) for n in range(RULES_OF_ONE)]
    setup = NetworkSetup(
        tuple(rules),
        {"index.example.org": "198.18.0.1"},
        KeyPair("c" * 4096, "k" * 4096),
        tuple(
            NetworkSecret(f"S{n}", "p" * 8190 + f"{n:02}", "é" * (VALUE_BYTES // 2), ("a" * 60 + ".example",) * 16)
            for n in range(SECRETS)
        ),
        "c" * 64,
    )
    assert gathered(protocol.open_packets("a", (443,), setup)) == (OpenNetwork("a", (443,)), setup)
    assert gathered(protocol.change_packets("a", (), rules)) == (ChangeNetwork("a", ()), NetworkSetup(tuple(rules)))
    assert gathered(protocol.change_packets("a", (443,), ())) == (ChangeNetwork("a", (443,)), NetworkSetup())


def test_what_was_said_of_another_sandbox_is_forgotten() -> None:
    assembly = SetupAssembly()
    assembly.add(KnownRules("a", RULES))
    assembly.add(KnownNames("b", {"index.example.org": "198.18.0.1"}))
    assert assembly.take("a") == NetworkSetup()
    assembly.add(KnownRules("a", RULES))
    assert assembly.take("a") == NetworkSetup(RULES)
    assert assembly.take("a") == NetworkSetup()


@pytest.mark.parametrize(
    "known", [KnownRules("a", RULES * 5), KnownSecret("a", SECRET), KnownNames("a", {"": "198.18.0.1"})]
)
def test_more_than_a_sandbox_can_have_is_refused(known: protocol.Known) -> None:
    assembly = SetupAssembly()
    with pytest.raises(InvalidMessage):
        for n in range(MAX_NAMES + 1):
            if isinstance(known, KnownNames):
                assembly.add(KnownNames("a", {str(n): "198.18.0.1"}))
            elif isinstance(known, KnownSecret):
                assembly.add(KnownSecret("a", replace(SECRET, placeholder=f"{SECRET.placeholder}{n}")))
            else:
                assembly.add(known)


def test_secret_that_is_said_twice_counts_once_and_the_last_value_holds() -> None:
    """One that changes while its sandbox is not open comes ahead of all of them."""
    secrets = [replace(SECRET, placeholder=f"{SECRET.placeholder}{n}") for n in range(SECRETS)]
    assembly = SetupAssembly()
    for secret in (replace(secrets[3], value="an older value"), *secrets):
        assembly.add(KnownSecret("a", secret))
    assert set(assembly.take("a").secrets) == set(secrets)


def test_no_text_of_an_order_shows_a_secret_or_a_key() -> None:
    setup = NetworkSetup(authority=KeyPair("certificate", "the key"), secrets=(SECRET,), credential="a password")
    assert "a password" not in repr(setup) + repr(KnownCredential("a", "a password"))
    assert "the key" not in repr(setup)
    assert SECRET.value not in repr(setup)


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
    ("kind", "field", "value"),
    [
        (KnownRules, "rules", None),
        (KnownRules, "rules", ["index.example.org:443"]),
        (KnownRules, "rules", [{"host": "a.example", "ports": [443], "raw": False}] * 65),
        (KnownRules, "rules", [{"host": "a b", "ports": [443], "raw": False}]),
        (KnownRules, "rules", [{"host": "10.0.0.0/8", "ports": [443], "raw": False}]),
        (KnownRules, "rules", [{"host": "a.example", "ports": [443], "http": [{"paths": ["/.."]}]}]),
        (OpenNetwork, "ports", [0]),
        (OpenNetwork, "ports", [True]),
        (ChangeNetwork, "ports", [443, 443]),
        (ChangeNetwork, "ports", list(range(1, 18))),
        (OpenNetwork, "ports", "443"),
        (OpenNetwork, "client", None),
        (OpenNetwork, "client", "c" * 65),
        (KnownNames, "names", {"a.example": "10.0.0.1"}),
        (KnownNames, "names", {"a.example": "::1"}),
        (KnownNames, "names", {"a.example": 5}),
        (KnownNames, "names", {"": "198.18.0.1"}),
        (KnownNames, "names", ["a.example"]),
        (KnownAuthority, "authority", "pem"),
        (KnownAuthority, "authority", {"certificate": "c"}),
        (KnownAuthority, "authority", {"certificate": "c", "key": 5}),
        (KnownAuthority, "authority", {"certificate": "c", "key": "k", "more": 1}),
        (KnownCredential, "credential", ""),
        (KnownCredential, "credential", "c" * 65),
        (KnownSecret, "secret", asdict(SECRET) | {"hosts": []}),
        (KnownSecret, "secret", asdict(SECRET) | {"hosts": ["*.example.com"]}),
        (KnownSecret, "secret", asdict(SECRET) | {"hosts": ["API.example.com"]}),
        (KnownSecret, "secret", asdict(SECRET) | {"value": ""}),
        (KnownSecret, "secret", asdict(SECRET) | {"hosts": ["a.test"] * 17}),
        (KnownSecret, "secret", asdict(SECRET) | {"value": "v" * 9000}),
    ],
)
def test_order_with_a_wrong_field_is_refused(kind: type[Order], field: str, value: object) -> None:
    right = json.loads(protocol.encode(next(order for order in ORDERS if type(order) is kind)))
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
