"""Counts the connections of the service. Each client has a share. Newcomers have not sent a request yet."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from functools import lru_cache
from typing import Protocol

from app.core.budget import Budget
from app.core.retention import Retention

NEWCOMERS = 512
CACHED_LETTERS = 64  # an address has 45 at most, but its zone (RFC 4007) may be long


def canonical(address: str) -> str:
    """Returns an IP address in its one short form. An IPv4 address in IPv6 (RFC 4291, section 2.5.5.2) becomes IPv4.
    Raises ValueError."""
    return _canonical(address) if len(address) <= CACHED_LETTERS else _canonical.__wrapped__(address)


@lru_cache(maxsize=1024)
def _canonical(address: str) -> str:
    """To parse an address takes 10 µs, and most requests come from few."""
    found = ipaddress.ip_address(address)
    return str((isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped) or found)


def network_of(address: str) -> str:
    """Returns an IPv4 address, or the network of 64 bits of an IPv6 address, as a machine can use any number of
    addresses there."""
    if ":" not in address:
        return address
    address = canonical(address.partition("%")[0])
    return str(ipaddress.ip_network((address, 64), strict=False)) if ":" in address else address


class Closable(Protocol):
    @property
    def idle(self) -> bool:
        """No request of it is being worked on."""

    def give_up(self) -> None: ...


class Connections:
    """A connection is a newcomer until its first request was looked at. When there are too many newcomers, the address
    that has the most of them loses its first one. When a client has no room for one more, its own connection that has
    been idle for the longest is closed. When nothing is left for a client that has no connection, the client that has
    the most loses an idle one. Otherwise a dozen silent clients could keep everybody else out."""

    def __init__(self, newcomers: int) -> None:
        self._newcomers = Retention[ConnectionEntry](newcomers)
        self._entries: dict[tuple[Budget, Hashable], dict[ConnectionEntry, None]] = {}  # by their last request

    def enter(self, connection: Closable, address: str) -> ConnectionEntry:
        """`address`: of the peer, which may be a proxy."""
        entry = ConnectionEntry(self, connection, address)
        self._newcomers.add(entry.network, entry, 1)
        if self._newcomers.full:
            next((e for e in self._newcomers.of_the_largest() if e.connection.idle), entry).close()
        return entry

    def move(self, entry: ConnectionEntry, budget: Budget, holder: Hashable) -> None:
        """Raises CapacityExceeded."""
        if entry.held != (budget, holder):
            if not budget.fits(holder):
                self._make_room(budget, holder)
            budget.take(holder)
            self.remove(entry)
            entry.held = budget, holder
        entries = self._entries.setdefault((budget, holder), {})
        entries.pop(entry, None)
        entries[entry] = None

    def _make_room(self, budget: Budget, holder: Hashable) -> None:
        if budget.held(holder):
            self._close_idle(self._entries.get((budget, holder), {}))
            return
        others = [entries for (of, _), entries in self._entries.items() if of is budget]
        for entries in sorted(others, key=len, reverse=True):
            if self._close_idle(entries):
                return

    def _close_idle(self, entries: dict[ConnectionEntry, None]) -> bool:
        found = next((entry for entry in entries if entry.connection.idle), None)
        if found is not None:
            found.close()
        return found is not None

    def remove(self, entry: ConnectionEntry) -> None:
        self._newcomers.remove(entry.network, entry)
        if entry.held is not None:
            budget, holder = entry.held
            budget.give_back(holder)
            entries = self._entries[entry.held]
            del entries[entry]
            if not entries:
                del self._entries[entry.held]
            entry.held = None


class ConnectionEntry:
    """One connection among all. The application finds it as `connection` in the state of each request's scope."""

    def __init__(self, connections: Connections, connection: Closable, address: str) -> None:
        self.connection, self.address, self.network = connection, address, network_of(address)
        self.held: tuple[Budget, Hashable] | None = None
        self._connections = connections

    def belongs_to(self, budget: Budget, holder: Hashable) -> None:
        """Called with each request. Raises CapacityExceeded when the connection is to be closed after the answer."""
        self._connections.move(self, budget, holder)

    def leave(self) -> None:
        """The connection is gone. Repeatable."""
        self._connections.remove(self)

    def close(self) -> None:
        self.leave()
        self.connection.give_up()
