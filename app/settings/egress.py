"""What sandboxes with a network of the mode `proxy` may reach, and how much of it."""

from __future__ import annotations

import ipaddress
import re
import ssl
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from app.core.hosts import IPNetwork
from app.core.network_rules import NetworkRule, parse_rule
from app.core.policy import EgressPolicy
from app.settings.part import AbsolutePath, Part, split

_RESOLVER = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})")
_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_INSIDE_BOXES = IPv4Network("192.168.127.0/24")  # BoxLite's own

PROXY_PORT = 3128  # for boxes


def proxy_host(network: IPv4Network) -> IPv4Address:
    """The second address of the network of boxes. The first one is the host's."""
    return network[2]


def _rules(value: Any) -> Any:
    """`HOST:PORT,HOST:PORT` as well as a JSON list, whose items may be objects."""
    items = split(value, '["index.example.org:443", {"host": "10.0.0.0/8", "ports": [5432], "raw": true}]')
    if not isinstance(items, list | tuple):
        raise ValueError("must be a list of rules")
    return tuple(item if isinstance(item, NetworkRule) else parse_rule(item) for item in items)


def _nets(value: Any) -> Any:
    value = split(value, '["10.0.0.0/8", "fd00::/8"]')
    return tuple(map(_net, value)) if isinstance(value, list | tuple) else value


def _net(value: Any) -> IPNetwork:
    try:
        return value if isinstance(value, IPNetwork) else ipaddress.ip_network(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is not an address or a network such as 10.0.0.0/8") from None


class EgressSettings(Part):
    allow: Annotated[tuple[NetworkRule, ...], NoDecode, BeforeValidator(_rules)] = Field(
        (NetworkRule("*", (80,)), NetworkRule("*", (443,))),
        description="widest rules that clients may ask for with the network mode `proxy`; `[]`: no such mode",
    )
    permit_nets: Annotated[tuple[IPNetwork, ...], NoDecode, BeforeValidator(_nets)] = Field(
        (), description="networks that sandboxes may reach although they are not public"
    )
    own_nets: Annotated[tuple[IPNetwork, ...], NoDecode, BeforeValidator(_nets)] = Field(
        (), description="networks that are refused as this machine's own, beside the addresses that it knows"
    )
    socket: AbsolutePath | None = Field(None, description="socket of an egress process that is a service of its own")
    resolver: str = Field("", description="ADDRESS:PORT of the DNS server that is asked; empty: the system's")
    secrets_file: Path | None = Field(
        None, description="TOML file with the operator's secrets, of mode 0600; it is read again when it changes"
    )
    boxlite_network: IPv4Network | None = Field(
        None,
        description="a private /30 that this host does not use, such as 10.213.77.0/30, where boxes find the proxy; "
        "absent: no mode `proxy` over BoxLite",
    )
    ca_file: AbsolutePath | None = Field(
        None, description="certificates of the authorities that may vouch for hosts, as PEM; empty: the system's"
    )
    connections: int = Field(4096, ge=1, le=2**20, description="open connections of all sandboxes")
    connections_per_sandbox: int = Field(256, ge=1, le=2**20, description="open connections of one sandbox")
    connections_per_second: int = Field(100, ge=1, le=2**20, description="new connections of one sandbox in a second")
    bytes_per_sandbox: int = Field(
        0, ge=0, le=2**63 - 1, description="bytes that one sandbox may send and receive in its life; 0: any number"
    )

    @field_validator("resolver")
    @classmethod
    def _is_address_and_port(cls, text: str) -> str:
        found = _RESOLVER.fullmatch(text)
        if text and found is None:
            raise ValueError(f"{text!r} is not ADDRESS:PORT, such as 192.0.2.53:53 or [2001:db8::53]:53")
        if found is not None:
            ipaddress.ip_address(found[1] or found[2])
            if not 1 <= int(found[3]) <= 65_535:
                raise ValueError(f"{text!r} has no port from 1 to 65535")
        return text

    @field_validator("boxlite_network")
    @classmethod
    def _is_private(cls, network: IPv4Network | None) -> IPv4Network | None:
        if network is not None and (network.prefixlen != 30 or not any(map(network.subnet_of, _PRIVATE))):
            raise ValueError(f"{network} is not a /30 of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16")
        if network is not None and network.subnet_of(_INSIDE_BOXES):
            raise ValueError(f"{network} is in {_INSIDE_BOXES}, which is the network inside every box")
        return network

    @property
    def boxlite_proxy(self) -> str | None:
        """`ADDRESS:PORT`, if there is one."""
        return f"{proxy_host(self.boxlite_network)}:{PROXY_PORT}" if self.boxlite_network is not None else None

    @field_validator("ca_file")
    @classmethod
    def _has_certificates(cls, path: Path | None) -> Path | None:
        if path is None:
            return None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except ssl.SSLError:
            raise ValueError(f"{path} has no certificates as PEM") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        return path

    def policy(self) -> EgressPolicy:
        return EgressPolicy(self.allow, self.permit_nets)
