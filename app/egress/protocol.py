"""The messages between gateway and egress process, for both ends.

One JSON object is one packet of a SOCK_SEQPACKET socket. Descriptors travel beside a packet (SCM_RIGHTS). The egress
process listens, and its first message is `Hello`. Decoding never trusts the other side: what is not exactly a message
raises InvalidMessage, and the receiver hangs up.

What the egress process needs of a sandbox may be more than one packet holds. So it goes ahead in packets that add up,
and `OpenNetwork` or `ChangeNetwork` follows: see `open_packets` and `SetupAssembly`.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from app.core import hosts
from app.core.network_rules import PORTS, RULES, NetworkRule, parse_rule
from app.core.secrets import HOSTS, SECRETS, VALUE_BYTES

VERSION = 4
MAX_PACKET = 64 * 1024
MAX_DESCRIPTORS = PORTS + 1  # the resolver's socket, and a listener for each port
ADDRESSES = IPv4Network("198.18.0.0/15")  # what names are given. RFC 2544: nobody has them on the Internet
MAX_NAMES = 4096  # of one sandbox
_NAMES_PER_PACKET = 200  # 253 bytes each at most
_RULES_SIZE = 32 * 1024  # of the rules in a packet. One alone has 30 KiB at most
_CREDENTIAL = 64  # characters
_CLIENT = 64  # likewise
_PEM = 4096  # characters of a certificate or key. Those of P-256 have 700 and 250
_ANCILLARY = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
_TEXT = 1024  # characters of a text in an event


class InvalidMessage(Exception):
    """The other side sent something that it must not send."""


# --- what a sandbox needs


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, both as PEM."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class NetworkSecret:
    """`placeholder` stands in the variable inside the sandbox. The egress process puts `value` in its place, in
    requests to `hosts` alone, which are names. Without hosts it has no value: it was taken away."""

    variable: str
    placeholder: str
    value: str = field(repr=False)
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NetworkSetup:
    """What the egress process needs of a sandbox beside its sockets. `names` are those that were given an address
    before. `authority` signs the certificates of hosts whose rules have `http`. With a `credential` it has no sockets:
    its programs connect to the proxy, by the sandbox's id and this password."""

    rules: tuple[NetworkRule, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    authority: KeyPair | None = None
    secrets: tuple[NetworkSecret, ...] = ()
    credential: str = field(default="", repr=False)


# --- gateway -> egress process


@dataclass(frozen=True, slots=True)
class KnownNames:
    sandbox: str
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KnownRules:
    """Some of the rules, in their order."""

    sandbox: str
    rules: tuple[NetworkRule, ...]


@dataclass(frozen=True, slots=True)
class KnownAuthority:
    sandbox: str
    authority: KeyPair


@dataclass(frozen=True, slots=True)
class KnownSecret:
    """For a sandbox that is open it takes the place of the one with its placeholder, at once."""

    sandbox: str
    secret: NetworkSecret


@dataclass(frozen=True, slots=True)
class KnownCredential:
    sandbox: str
    credential: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class OpenNetwork:
    """Serves the sandbox with what was said before. With the descriptors [resolver, a listener for each of `ports` in
    their order], or after a credential with none. Sandboxes with the same `client` share what one client may have; ""
    where there is only one client. `moved`: the bytes that it has moved before, by the last `BytesMoved`. The answer is
    `NetworkOpened` or `NetworkNotOpened`."""

    sandbox: str
    ports: tuple[int, ...]
    client: str = ""
    moved: int = 0


@dataclass(frozen=True, slots=True)
class ChangeNetwork:
    """The rules that were said before replace those of the sandbox; there may be none. Names, authority and secrets
    stay. With a descriptor of a listener for each of `ports`, which are new ones. The answer is `NetworkChanged` or
    `NetworkNotChanged`."""

    sandbox: str
    ports: tuple[int, ...]


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
class NetworkChanged:
    """Connections that the new rules do not permit are cut."""

    sandbox: str


@dataclass(frozen=True, slots=True)
class NetworkNotChanged:
    """The network is closed, as after `CloseNetwork`: the old rules must not hold. `reason` is a sentence for
    people."""

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
class BytesMoved:
    """So many bytes a sandbox has moved in its life, where there is a bound. Not sent for every byte."""

    sandbox: str
    count: int


@dataclass(frozen=True, slots=True)
class NetworkClosed:
    """All connections of the sandbox are cut. No message about it follows."""

    sandbox: str


Known = KnownNames | KnownRules | KnownAuthority | KnownSecret | KnownCredential
Order = Known | OpenNetwork | ChangeNetwork | CloseNetwork
Report = (
    Hello
    | NetworkOpened
    | NetworkNotOpened
    | NetworkChanged
    | NetworkNotChanged
    | NameGiven
    | NetworkEventTold
    | EventsDropped
    | BytesMoved
    | NetworkClosed
)
_KINDS: dict[type[Any], str] = {
    KnownNames: "names",
    KnownRules: "rules",
    KnownAuthority: "authority",
    KnownSecret: "secret",
    KnownCredential: "credential",
    OpenNetwork: "open",
    ChangeNetwork: "change",
    CloseNetwork: "close",
    Hello: "hello",
    NetworkOpened: "opened",
    NetworkNotOpened: "not_opened",
    NetworkChanged: "changed",
    NetworkNotChanged: "not_changed",
    NameGiven: "named",
    NetworkEventTold: "event",
    EventsDropped: "dropped",
    BytesMoved: "moved",
    NetworkClosed: "closed",
}


def encode(message: Order | Report) -> bytes:
    fields = asdict(message)
    if isinstance(message, KnownRules):
        fields["rules"] = [rule.as_dict() for rule in message.rules]
    return json.dumps({"kind": _KINDS[type(message)], **fields}, separators=(",", ":")).encode()


def open_packets(
    sandbox: str, ports: Sequence[int], setup: NetworkSetup, client: str = "", moved: int = 0
) -> list[bytes]:
    """The packets that open the network of a sandbox. The descriptors travel with the last one."""
    names = list(setup.names.items())
    known: list[Order] = [
        KnownNames(sandbox, dict(names[at : at + _NAMES_PER_PACKET])) for at in range(0, len(names), _NAMES_PER_PACKET)
    ]
    if setup.authority is not None:
        known.append(KnownAuthority(sandbox, setup.authority))
    known += [KnownSecret(sandbox, secret) for secret in setup.secrets]
    if setup.credential:
        known.append(KnownCredential(sandbox, setup.credential))
    known.append(OpenNetwork(sandbox, tuple(ports), client, moved))
    return [*_rules_packets(sandbox, setup.rules), *map(encode, known)]


def change_packets(sandbox: str, new_ports: Sequence[int], rules: Sequence[NetworkRule]) -> list[bytes]:
    """The packets that give a sandbox other rules. The descriptors of the new listeners travel with the last one."""
    return [*_rules_packets(sandbox, rules), encode(ChangeNetwork(sandbox, tuple(new_ports)))]


def _rules_packets(sandbox: str, rules: Sequence[NetworkRule]) -> list[bytes]:
    packets, begin, size = [], 0, 0
    for at, rule in enumerate(rules):
        length = len(json.dumps(rule.as_dict()))
        if at > begin and size + length > _RULES_SIZE:
            packets.append(encode(KnownRules(sandbox, tuple(rules[begin:at]))))
            begin, size = at, 0
        size += length
    if begin < len(rules):
        packets.append(encode(KnownRules(sandbox, tuple(rules[begin:]))))
    return packets


class SetupAssembly:
    """Adds up what is said of one sandbox before its `OpenNetwork` or `ChangeNetwork`."""

    def __init__(self) -> None:
        self._sandbox, self._setup = "", NetworkSetup()

    def add(self, known: Known) -> None:
        """What was said of another sandbox is forgotten. Raises InvalidMessage for more than a sandbox can have."""
        setup = self._setup if known.sandbox == self._sandbox else NetworkSetup()
        if isinstance(known, KnownNames):
            setup = replace(setup, names={**setup.names, **known.names})
        elif isinstance(known, KnownRules):
            setup = replace(setup, rules=(*setup.rules, *known.rules))
        elif isinstance(known, KnownAuthority):
            setup = replace(setup, authority=known.authority)
        elif isinstance(known, KnownCredential):
            setup = replace(setup, credential=known.credential)
        else:
            # One that came when its sandbox was not open is there already.
            others = tuple(each for each in setup.secrets if each.placeholder != known.secret.placeholder)
            setup = replace(setup, secrets=(*others, known.secret))
        if len(setup.names) > MAX_NAMES or len(setup.rules) > RULES or len(setup.secrets) > SECRETS:
            raise InvalidMessage("too many names, rules or secrets")
        self._sandbox, self._setup = known.sandbox, setup

    def take(self, sandbox: str) -> NetworkSetup:
        """What was said of this sandbox. It is forgotten here."""
        setup = self._setup if sandbox == self._sandbox else NetworkSetup()
        self._sandbox, self._setup = "", NetworkSetup()
        return setup


def decode_order(packet: bytes) -> Order:
    """Raises InvalidMessage."""
    fields = _Fields.of(packet)
    kind, sandbox = fields.text("kind", 16), fields.text("sandbox", 64)
    order: Order
    match kind:
        case "names":
            order = KnownNames(sandbox, fields.names())
        case "rules":
            order = KnownRules(sandbox, fields.rules())
        case "authority":
            order = KnownAuthority(sandbox, fields.key_pair())
        case "secret":
            order = KnownSecret(sandbox, fields.secret())
        case "credential":
            order = KnownCredential(sandbox, fields.text("credential", _CREDENTIAL))
        case "open":
            order = OpenNetwork(
                sandbox, fields.ports(), fields.text("client", _CLIENT, least=0), fields.number("moved")
            )
        case "change":
            order = ChangeNetwork(sandbox, fields.ports())
        case "close":
            order = CloseNetwork(sandbox)
        case _:
            raise InvalidMessage("not an order")
    fields.end()
    return order


def decode_report(packet: bytes) -> Report:
    """Raises InvalidMessage."""
    fields = _Fields.of(packet)
    kind = fields.text("kind", 16)
    sandbox = fields.text("sandbox", 64) if kind != "hello" else ""
    report: Report
    match kind:
        case "hello":
            report = Hello(fields.number("version"))
        case "opened":
            report = NetworkOpened(sandbox)
        case "not_opened":
            report = NetworkNotOpened(sandbox, fields.text("reason"))
        case "changed":
            report = NetworkChanged(sandbox)
        case "not_changed":
            report = NetworkNotChanged(sandbox, fields.text("reason"))
        case "named":
            report = NameGiven(sandbox, fields.text("name", 253), fields.address("address"))
        case "event":
            report = NetworkEventTold(sandbox, fields.event())
        case "dropped":
            report = EventsDropped(sandbox, fields.number("count"))
        case "moved":
            report = BytesMoved(sandbox, fields.number("count"))
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
    "verdict": lambda value: value in ("allowed", "refused", "failed"),
    "method": _is_text_or_none,
    "path": _is_text_or_none,
    "rule": _is_text_or_none,
    "reason": _is_text_or_none,
    "bytes_sent": _is_number,
    "bytes_received": _is_number,
    "duration_seconds": _is_seconds,
}


class _Fields:
    """The fields of one message. Every method raises InvalidMessage for one that is missing or of the wrong type."""

    def __init__(self, found: object) -> None:
        if not isinstance(found, dict):
            raise InvalidMessage("not an object")
        self._found = found

    @classmethod
    def of(cls, packet: bytes) -> _Fields:
        try:
            return cls(json.loads(packet))
        except (ValueError, RecursionError):
            raise InvalidMessage("not JSON") from None

    def take(self, name: str) -> Any:
        try:
            return self._found.pop(name)
        except KeyError:
            raise InvalidMessage(f"{name} is missing") from None

    def end(self) -> None:
        if self._found:
            raise InvalidMessage("an unknown field")

    def text(self, name: str, most: int = _TEXT, least: int = 1) -> str:
        value = self.take(name)
        if not isinstance(value, str) or not least <= len(value) <= most:
            raise InvalidMessage(f"{name} is not a text of {least} to {most} characters")
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

    def key_pair(self) -> KeyPair:
        inner = _Fields(self.take("authority"))
        pair = KeyPair(inner.text("certificate", _PEM), inner.text("key", _PEM))
        inner.end()
        return pair

    def secret(self) -> NetworkSecret:
        inner = _Fields(self.take("secret"))
        secret = NetworkSecret(
            inner.text("variable", 256),
            inner.text("placeholder", VALUE_BYTES),
            inner.text("value", VALUE_BYTES, least=0),
            inner.host_names("hosts"),
        )
        if bool(secret.value) != bool(secret.hosts):
            raise InvalidMessage("a secret has either no value or no hosts")
        inner.end()
        return secret

    def host_names(self, name: str) -> tuple[str, ...]:
        value = self.take(name)
        if not isinstance(value, list) or len(value) > HOSTS:
            raise InvalidMessage(f"{name} is not a list of at most {HOSTS} names")
        if not all(isinstance(host, str) and hosts.is_name(host) for host in value):
            raise InvalidMessage(f"{name} has something else than names in their normal form")
        return tuple(value)

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
