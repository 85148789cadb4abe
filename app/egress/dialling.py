"""Connects to the real host of a rule: asks for its addresses once, judges all of them, and dials one that was judged.

So a name whose answer changes between two questions gains nothing. One forbidden address refuses the whole answer.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Container, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from app.core.addresses import forbidden, unmapped
from app.core.hosts import IPAddress, IPNetwork
from app.egress.lookup import Endpoint, Lookup, NoAddress
from app.egress.reasons import Reason
from app.egress.sockets import NO_DESCRIPTORS, bound_memory
from app.egress.times import Times
from app.egress.turns import SandboxTurns

ADDRESSES_READ = 64  # of an answer; the others are not judged, and never dialled
ADDRESSES_TRIED = 8


class NotDialled(Exception):
    """`reason` is a Reason, or one of `core.addresses`. `address` is the one that it is about, if it is about one.
    `detail`: more for people, if there is more to say."""

    def __init__(self, reason: str, address: IPAddress | None = None, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.address, self.detail = reason, address, detail


class OwnAddresses:
    """The addresses of this machine, as the kernel's routes tell at the moment of the question, and what `nets` has
    besides. Raises ValueError."""

    def __init__(self, nets: Sequence[str] = ()) -> None:
        self._nets: tuple[IPNetwork, ...] = tuple(map(ip_network, nets))

    def __contains__(self, address: object) -> bool:
        """A packet to an own address leaves from that address, or from the loopback's. No packet is sent for this."""
        if not isinstance(address, IPv4Address | IPv6Address):
            return False
        if any(address in net for net in self._nets):
            return True
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
                probe.connect((str(address), 9))
                source = ip_address(probe.getsockname()[0].partition("%")[0])
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                raise NotDialled(Reason.DESCRIPTORS) from error
            return False  # there is no way there, so dialling will fail
        return source == address or source.is_loopback


class Dialler:
    """`own_nets` count as this machine's. `resolver` is `ADDRESS:PORT`, or "" for the system's. `service` has
    `ADDRESS:PORT` of what the service itself listens on. Raises ValueError."""

    def __init__(
        self,
        permit_nets: Sequence[str],
        own_nets: Sequence[str],
        resolver: str,
        service: Sequence[str],
        times: Times,
    ) -> None:
        self._permitted: tuple[IPNetwork, ...] = tuple(map(ip_network, permit_nets))
        self._times = times
        self._own: Container[IPAddress] = OwnAddresses(own_nets)
        self._service = tuple(map(endpoint, service))
        self._lookup = Lookup(endpoint(resolver) if resolver else None, times)

    def check(self, address: IPAddress, port: int) -> None:
        """Raises NotDialled for an address that must not be dialled."""
        reason = forbidden(address, self._permitted, self._own)
        if reason is None and self._is_service(address, port):
            reason = Reason.SERVICE
        if reason is not None:
            raise NotDialled(reason, address)

    def _is_service(self, address: IPAddress, port: int) -> bool:
        here = [listens for listens, at in self._service if at == port]
        address = unmapped(address)
        return bool(here) and (address in here or address.is_loopback or address in self._own)

    async def dial(
        self, turns: SandboxTurns, host: str | IPAddress, port: int, *, wide: bool
    ) -> tuple[socket.socket, IPAddress]:
        """Returns a non-blocking socket, and the address that it is connected to. `wide` lets the kernel hold more for
        it. Raises NotDialled."""
        addresses = await self._resolve(turns, host) if isinstance(host, str) else [host]
        for address in addresses:
            self.check(address, port)
        failure = NotDialled(Reason.UNREACHABLE)
        until = asyncio.get_running_loop().time() + self._times.connect
        for left, address in zip(range(min(len(addresses), ADDRESSES_TRIED), 0, -1), addresses, strict=False):
            seconds = until - asyncio.get_running_loop().time()
            if seconds <= 0:
                break
            try:
                return await _connect(
                    turns, address, port, min(seconds, self._times.address) if left > 1 else seconds, wide
                )
            except TimeoutError:
                failure = NotDialled(Reason.TIMEOUT, address)
            except OSError as error:
                failure = NotDialled(_reason_of(error), address)
        raise failure

    async def _resolve(self, turns: SandboxTurns, name: str) -> list[IPAddress]:
        """Raises NotDialled."""
        try:
            return (await self._lookup.addresses(turns, name))[:ADDRESSES_READ]
        except NoAddress as error:
            raise NotDialled(error.reason) from error


def endpoint(text: str) -> Endpoint:
    """`192.0.2.1:53` or `[2001:db8::1]:53`. Raises ValueError."""
    host, _, port = text.rpartition(":")
    return ip_address(host.removeprefix("[").removesuffix("]")), int(port)


def _reason_of(error: OSError) -> Reason:
    return Reason.DESCRIPTORS if error.errno in NO_DESCRIPTORS else Reason.UNREACHABLE


async def _connect(
    turns: SandboxTurns, address: IPAddress, port: int, seconds: float, wide: bool
) -> tuple[socket.socket, IPAddress]:
    """Raises OSError and TimeoutError."""
    address = unmapped(address)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        bound_memory(connection, wide=wide)
        # Finds hosts that are gone while a connection is silent: after two minutes.
        for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        failed = connection.connect_ex((str(address), port))
        if failed == errno.EINPROGRESS:
            async with asyncio.timeout(seconds):
                await turns.writable(connection.fileno())
            failed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
    except BaseException:
        turns.forget(connection.fileno())
        connection.close()
        raise
    return connection, address
