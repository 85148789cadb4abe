"""The messages between gateway and egress process, for both ends.

One JSON object is one packet of a SOCK_SEQPACKET socket. Descriptors travel beside a packet (SCM_RIGHTS). The egress
process listens, and its first message is `Hello`. Decoding never trusts the other side: what is not exactly a message
raises InvalidMessage, and the receiver hangs up.

A sandbox may have more names than one packet holds, so `open_packets` sends them in `KnownNames` before its
`OpenNetwork`.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from app.core.network_rules import PORTS, RULES, NetworkRule, parse_rule

VERSION = 1
MAX_PACKET = 64 * 1024
MAX_DESCRIPTORS = PORTS + 1  # the resolver's socket, and a listener for each port
ADDRESSES = IPv4Network("198.18.0.0/15")  # what names are given. RFC 2544: nobody has them on the Internet
MAX_NAMES = 4096  # of one sandbox
_NAMES_PER_PACKET = 200  # 253 bytes each at most
_ANCILLARY = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
_TEXT = 1024  # characters of a text in an event


class InvalidMessage(Exception):
    """The other side sent something that it must not send."""


# --- gateway -> egress process


@dataclass(frozen=True, slots=True)
class KnownNames:
    """Names of a sandbox with the addresses that they were given before. Its `OpenNetwork` follows."""

    sandbox: str
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class OpenNetwork:
    """With the descriptors [resolver, a listener for each of `ports` in their order]."""

    sandbox: str
    rules: tuple[NetworkRule, ...]
    ports: tuple[int, ...]
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CloseNetwork:
    sandbox: str


# --- egress process -> gateway


@dataclass(frozen=True, slots=True)
class Hello:
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class NetworkOpened:
    sandbox: str


@dataclass(frozen=True, slots=True)
class NetworkNotOpened:
    """`reason` is a sentence for people, such as one about descriptors that are used up."""

    sandbox: str
    reason: str


@dataclass(frozen=True, slots=True)
class NameGiven:
    """A name has an address from now on. Sent before the program in the sandbox gets it."""

    sandbox: str
    name: str
    address: str


@dataclass(frozen=True, slots=True)
class NetworkEventTold:
    """`event` has the fields of a network event, without the execution."""

    sandbox: str
    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EventsDropped:
    """So many events of a sandbox were not told, because there were too many at once."""

    sandbox: str
    count: int


@dataclass(frozen=True, slots=True)
class NetworkClosed:
    """All connections of the sandbox are cut. No message about it follows."""

    sandbox: str


Order = KnownNames | OpenNetwork | CloseNetwork
Report = Hello | NetworkOpened | NetworkNotOpened | NameGiven | NetworkEventTold | EventsDropped | NetworkClosed
_KINDS: dict[type[Any], str] = {
    KnownNames: "names",
    OpenNetwork: "open",
    CloseNetwork: "close",
    Hello: "hello",
    NetworkOpened: "opened",
    NetworkNotOpened: "not_opened",
    NameGiven: "named",
    NetworkEventTold: "event",
    EventsDropped: "dropped",
    NetworkClosed: "closed",
}


def encode(message: Order | Report) -> bytes:
    fields = asdict(message)
    if isinstance(message, OpenNetwork):
        fields["rules"] = [rule.as_dict() for rule in message.rules]
    return json.dumps({"kind": _KINDS[type(message)], **fields}, separators=(",", ":")).encode()


def open_packets(order: OpenNetwork) -> list[bytes]:
    """The packets of an order. The descriptors travel with the last one."""
    names = list(order.names.items())
    known = [
        KnownNames(order.sandbox, dict(names[at : at + _NAMES_PER_PACKET]))
        for at in range(0, len(names), _NAMES_PER_PACKET)
    ]
    return [*map(encode, known), encode(OpenNetwork(order.sandbox, order.rules, order.ports))]


def decode_order(packet: bytes) -> Order:
    """Raises InvalidMessage."""
    fields = _Fields(packet)
    sandbox = fields.text("sandbox", 64)
    order: Order
    match fields.kind:
        case "names":
            order = KnownNames(sandbox, fields.names())
        case "open":
            order = OpenNetwork(sandbox, fields.rules(), fields.ports(), fields.names())
        case "close":
            order = CloseNetwork(sandbox)
        case _:
            raise InvalidMessage("not an order")
    fields.end()
    return order


def decode_report(packet: bytes) -> Report:
    """Raises InvalidMessage."""
    fields = _Fields(packet)
    sandbox = fields.text("sandbox", 64) if fields.kind != "hello" else ""
    report: Report
    match fields.kind:
        case "hello":
            report = Hello(fields.number("version"))
        case "opened":
            report = NetworkOpened(sandbox)
        case "not_opened":
            report = NetworkNotOpened(sandbox, fields.text("reason"))
        case "named":
            report = NameGiven(sandbox, fields.text("name", 253), fields.address("address"))
        case "event":
            report = NetworkEventTold(sandbox, fields.event())
        case "dropped":
            report = EventsDropped(sandbox, fields.number("count"))
        case "closed":
            report = NetworkClosed(sandbox)
        case _:
            raise InvalidMessage("not a report")
    fields.end()
    return report


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _TEXT


def _is_text_or_none(value: object) -> bool:
    return value is None or _is_text(value)


_EVENT = {
    "at": _is_seconds,
    "kind": lambda value: value in ("name", "connection", "request"),
    "name": _is_text_or_none,
    "address": _is_text_or_none,
    "port": lambda value: value is None or (_is_number(value) and value <= 65535),
    "verdict": lambda value: value in ("allowed", "refused"),
    "rule": _is_text_or_none,
    "reason": _is_text_or_none,
    "bytes_sent": _is_number,
    "bytes_received": _is_number,
    "duration_seconds": _is_seconds,
}


class _Fields:
    """The fields of one message. Every method raises InvalidMessage for one that is missing or of the wrong type."""

    def __init__(self, packet: bytes) -> None:
        try:
            found = json.loads(packet)
        except (ValueError, RecursionError):
            raise InvalidMessage("not JSON") from None
        if not isinstance(found, dict):
            raise InvalidMessage("not an object")
        self._found = found
        self.kind = self.text("kind", 16)

    def take(self, name: str) -> Any:
        try:
            return self._found.pop(name)
        except KeyError:
            raise InvalidMessage(f"{name} is missing") from None

    def end(self) -> None:
        if self._found:
            raise InvalidMessage("an unknown field")

    def text(self, name: str, most: int = _TEXT) -> str:
        value = self.take(name)
        if not isinstance(value, str) or not value or len(value) > most:
            raise InvalidMessage(f"{name} is not a text of at most {most} characters")
        return value

    def number(self, name: str) -> int:
        value = self.take(name)
        if not _is_number(value):
            raise InvalidMessage(f"{name} is not a number")
        return int(value)

    def address(self, name: str) -> str:
        return _given_address(self.text(name, 15))

    def names(self) -> dict[str, str]:
        value = self.take("names")
        if not isinstance(value, dict) or len(value) > MAX_NAMES:
            raise InvalidMessage("names is not an object of names")
        if any(not 0 < len(name) <= 253 for name in value):
            raise InvalidMessage("a name is empty or too long")
        return {name: _given_address(address) for name, address in value.items()}

    def rules(self) -> tuple[NetworkRule, ...]:
        value = self.take("rules")
        if not isinstance(value, list) or len(value) > RULES or not all(isinstance(rule, dict) for rule in value):
            raise InvalidMessage("rules is not a list of rules")
        try:
            return tuple(map(parse_rule, value))
        except ValueError as error:
            raise InvalidMessage("not a rule") from error

    def ports(self) -> tuple[int, ...]:
        value = self.take("ports")
        if not isinstance(value, list) or len(value) > PORTS or len(value) != len({*map(str, value)}):
            raise InvalidMessage("ports is not a list of distinct ports")
        if not all(_is_number(port) and 1 <= port <= 65535 for port in value):
            raise InvalidMessage("a port is out of range")
        return tuple(value)

    def event(self) -> dict[str, Any]:
        value = self.take("event")
        if not isinstance(value, dict) or value.keys() != _EVENT.keys():
            raise InvalidMessage("not the fields of an event")
        for name, is_right in _EVENT.items():
            if not is_right(value[name]):
                raise InvalidMessage(f"{name} of an event is of the wrong type")
        return value


def _given_address(value: object) -> str:
    try:
        address = IPv4Address(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if address is None or address not in ADDRESSES:
        raise InvalidMessage(f"not an address of {ADDRESSES}")
    return str(address)


# --- the socket


def send(peer: socket.socket, packet: bytes, descriptors: Sequence[int] = ()) -> None:
    """Sends one packet at once, or raises BlockingIOError. Raises OSError."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    peer.sendmsg([packet], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def receive(peer: socket.socket) -> tuple[bytes, list[int]]:
    """Returns one packet and its descriptors, all of them CLOEXEC. b"" when the other side is gone.

    When this process cannot hold the descriptors, all of them are closed and none is returned. Raises OSError,
    BlockingIOError when there is no packet, and InvalidMessage for a packet that is too long.
    """
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    packet, ancillary, said, _ = peer.recvmsg(MAX_PACKET, _ANCILLARY, flags)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) // descriptors.itemsize * descriptors.itemsize])
    if said & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close(descriptors)
        descriptors = array.array("i")
    if said & socket.MSG_TRUNC:
        raise InvalidMessage("a packet is too long")
    return packet, list(descriptors)


def close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
