"""The isolation receipt: what is in force, as measured by the launcher, by tests inside, and through netlink."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address
from ssl import PEM_cert_to_DER_cert
from struct import Struct
from typing import Any, ClassVar

from pyroute2.netlink import nlmsg
from pyroute2.netlink.marshal import Marshal
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from app.backends.process.plan import filter_name
from app.core.models import SandboxSpec
from app.core.policy import Network
from app.egress.protocol import KeyPair

_MESSAGE, _ATTRIBUTE, _ATTRIBUTE_MASK = Struct("<IH"), Struct("<HH"), 0x3FFF
_TIMES = {16: (32, 26), 20: (24, 6)}  # type -> head and fixed part; IFLA_AF_SPEC of a link, IFA_CACHEINFO of an address
_GETLINK, _GETADDR, _GETROUTE, _GETRULE, _DONE, _DUMP = 18, 22, 26, 34, 3, 0x301
_UP, _UNICAST, _LOCAL = 1, 1, 2
_EVERY_ADDRESS = {socket.AF_INET: "0.0.0.0/0", socket.AF_INET6: "::/0"}


# pyroute2's own messages decode every attribute, and a link has dozens: 0.53 ms for one sandbox. These take what the
# receipt tells: 0.28 ms, both measured.


class _Link(nlmsg):  # type: ignore[misc]  # pyroute2 is untyped
    prefix, fields, nla_map = "IFLA_", ifinfmsg.fields, ((3, "IFLA_IFNAME", "asciiz"),)


class _Address(nlmsg):  # type: ignore[misc]
    prefix, fields, nla_map = "IFA_", ifaddrmsg.fields, ((1, "IFA_ADDRESS", "ipaddr"),)


class _Route(nlmsg):  # type: ignore[misc]
    prefix, fields, nla_map = "RTA_", rtmsg.fields, ((5, "RTA_GATEWAY", "ipaddr"),)


class _Rule(nlmsg):  # type: ignore[misc]
    prefix, fields, nla_map = "FRA_", fibmsg.fields, ()


class _Marshal(Marshal):  # type: ignore[misc]
    msg_map: ClassVar[dict[int, type[nlmsg]]] = {16: _Link, 20: _Address, 24: _Route, 32: _Rule}


_FILES = {
    "memory": "files in /workspace, /tmp and /dev/shm count as memory: memory_bytes is the limit of both together",
    "disk": "files in /workspace and /tmp are on a file system of their own; those in /dev/shm count as memory",
}


def isolation(
    facts: Mapping[str, str],
    about: Mapping[str, str],
    spec: SandboxSpec,
    network: Mapping[str, Any],
    authority: KeyPair | None = None,
) -> dict[str, Any]:
    """The receipt as JSON."""
    return {
        "tier": "kernel",
        "namespaces": facts["namespaces"].split(","),
        "host_uid": int(facts["uid"]),
        "root": "host",
        "no_new_privs": facts["no_new_privs"] == "1",
        "capabilities": {name[3:].lower(): int(facts[name], 16) for name in sorted(facts) if name.startswith("Cap")},
        "landlock": {
            "abi": int(facts["landlock_abi"]),
            "files": _list(facts["landlock_files"]),
            "tcp": _list(facts["landlock_tcp"]),
            "connect_ports": [int(port) for port in _list(facts["landlock_ports"])],
            "scopes": _list(facts["landlock_scopes"]),
        },
        "seccomp": {
            "mode": "filter" if facts["seccomp"] == "2" else facts["seccomp"],
            "profile": filter_name(spec),
            "sha256": hashlib.sha256(bytes.fromhex(about.get(f"filter_{filter_name(spec)}", ""))).hexdigest(),
        },
        "cgroup": {
            "version": int(about.get("cgroup_version", "0")),
            "memory_bytes": _limit(facts, "memory_bytes"),
            "processes": _limit(facts, "processes"),
            "cpus": _limit(facts, "cpu_millis", 1000),
            "cpuset_cpus": facts["cpuset_cpus"] or None,
            "swap": "none" if "swap_limit" in about.get("layers", "").split(",") else "not limited",
        },
        "storage": {
            "kind": facts["storage"],
            "file_system": facts["storage_file_system"],
            "bytes": int(facts["storage_bytes"]),
        },
        "network": _network(spec.policy.network, network) | _authority(facts, authority),
        "missing_layers": _list(about.get("accepted", "")),
        "notes": [
            _FILES[facts["storage"]],
            "Landlock and seccomp were tested inside the sandbox before the first command",
        ],
    }


def _network(asked: Network, measured: Mapping[str, Any]) -> dict[str, Any]:
    rules = {"allow": [rule.as_dict() for rule in asked.rules]} if asked.mode == "proxy" else {}
    return {"mode": asked.mode, **rules, **measured}


def _authority(facts: Mapping[str, str], authority: KeyPair | None) -> dict[str, Any]:
    """Its fingerprint, as `openssl x509 -fingerprint -sha256` shows it, and the files of the sandbox that have it."""
    if authority is None:
        return {}
    digest = hashlib.sha256(PEM_cert_to_DER_cert(authority.certificate)).hexdigest()
    return {"authority": {"sha256": digest, "trusted_in": _list(facts["trust_stores"])}}


def _list(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _limit(facts: Mapping[str, str], name: str, divisor: int = 1) -> float | None:
    value = int(facts.get(f"limit_{name}", "0"))
    if value <= 0:
        return None
    return value / divisor if divisor > 1 else value


class Networks:
    """The facts of each sandbox's network namespace, by host uid, until its receipt takes them. A namespace is read
    once, as soon as it exists and before any code but Bulkhead's is in it."""

    def __init__(self) -> None:
        self._read: dict[int, dict[str, Any] | OSError] = {}

    def read(self, uid: int, descriptor: int) -> None:
        """Reads through a netlink socket of the namespace, and closes it."""
        try:
            self._read[uid] = read_network(descriptor)
        except OSError as error:
            self._read[uid] = error

    def take(self, uid: int, *, any_address: bool) -> dict[str, Any]:
        """Raises ValueError when there is more than loopback, when every address is the sandbox's own and should not be
        or the other way round, or when it could not be read."""
        found = self._read.pop(uid, None)
        if not isinstance(found, dict):
            raise ValueError(f"its network namespace could not be read: {found}")
        if [link["name"] for link in found["links"]] != ["lo"] or found["routes_to_outside"]:
            raise ValueError("its network namespace holds more than loopback")
        if bool(found["any_address_routes"]) != any_address:
            raise ValueError("its network namespace has other routes than its policy")
        return found


def read_network(descriptor: int) -> dict[str, Any]:
    """Links, addresses, routes and rules, decoded by pyroute2. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0, descriptor) as netlink:
        netlink.settimeout(2)
        links, addresses, routes, rules = (_dump(netlink, request) for request in _REQUESTS)
    own = [r for r in routes if r["dst_len"] == 0 and r["type"] == _LOCAL]
    outside = [r for r in routes if r.get_attr("RTA_GATEWAY") or (r["dst_len"] == 0 and r["type"] == _UNICAST)]
    return {
        "links": [{"name": link.get_attr("IFLA_IFNAME"), "up": bool(link["flags"] & _UP)} for link in links],
        "addresses": [f"{ip_address(a.get_attr('IFA_ADDRESS'))}/{a['prefixlen']}" for a in addresses],
        "routes": len(routes),
        "routes_to_outside": len(outside),
        "any_address_routes": sorted(_EVERY_ADDRESS[r["family"]] for r in own),
        "rules": len(rules),
    }


def _request(kind: Any, number: int) -> bytes:
    message = kind()
    message["family"] = socket.AF_UNSPEC  # pyroute2 fills in AF_INET
    message["header"].update(type=number, flags=_DUMP, sequence_number=number)
    message.encode()
    return bytes(message.data)


# Built once: encoding takes a quarter of the time of a reading.
_REQUESTS = (
    _request(ifinfmsg, _GETLINK),
    _request(ifaddrmsg, _GETADDR),
    _request(rtmsg, _GETROUTE),
    _request(fibmsg, _GETRULE),
)


def _dump(netlink: socket.socket, request: bytes) -> tuple[Any, ...]:
    netlink.send(request)
    raw = b""
    while True:
        answer = bytearray(netlink.recv(65536))
        for at, kind in _alike(answer):
            if kind == _DONE:
                return _decoded(raw + answer[:at])
        raw += answer


def _alike(answer: bytearray) -> Iterator[tuple[int, int]]:
    """Where each message begins, and of which type it is. What differs from one new namespace to the next and tells
    nothing is wiped out: the asking socket's number and times."""
    at = 0
    while at < len(answer):
        size, kind = _MESSAGE.unpack_from(answer, at)
        end, answer[at + 12 : at + 16] = at + size, bytes(4)
        begin, of_times = _TIMES.get(kind, (size, 0))
        begin += at
        while begin + 4 <= end:
            length, attribute = _ATTRIBUTE.unpack_from(answer, begin)
            if attribute & _ATTRIBUTE_MASK == of_times:
                answer[begin + 4 : begin + length] = bytes(length - 4)
            begin += max(4, (length + 3) & ~3)
        yield at, kind
        at += max(16, (size + 3) & ~3)


@lru_cache(maxsize=64)
def _decoded(raw: bytes) -> tuple[Any, ...]:
    """Remembered: what was read says the same for nearly all sandboxes, and decoding was a third of the processor time
    that the gateway spent on a run (1.9 of 5.6 profiled ms)."""
    return tuple(_Marshal().parse(raw))
