"""The names of one sandbox, each with an address of its own that stays as long as the sandbox lives."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address

from app.core.hosts import IPAddress
from app.egress.protocol import ADDRESSES, MAX_NAMES


class NamesFull(Exception):
    """The sandbox has as many names as it may have."""


class NameTable:
    """`known` are names that were given an address before."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self._addresses = {name: IPv4Address(address) for name, address in known.items()}
        self._names = {address: name for name, address in self._addresses.items()}
        given = [int(address) for address in self._names if address in ADDRESSES]
        self._next = max(given, default=int(ADDRESSES.network_address))

    def address_of(self, name: str) -> IPv4Address | None:
        return self._addresses.get(name)

    def name_of(self, address: IPAddress) -> str | None:
        return self._names.get(address) if isinstance(address, IPv4Address) else None

    def give(self, name: str) -> IPv4Address:
        """Returns the next free address, from now on that of the name. Raises NamesFull."""
        if len(self._addresses) >= MAX_NAMES or self._next + 1 >= int(ADDRESSES.broadcast_address):
            raise NamesFull
        self._next += 1
        address = IPv4Address(self._next)
        self._addresses[name], self._names[address] = address, name
        return address
