"""Connects to the real host of a rule: asks for its addresses once, judges all of them, and dials one that was judged.

So a name whose answer changes between two questions gains nothing. One forbidden address refuses the whole answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Container, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import dns.asyncresolver
import dns.exception
import dns.resolver

from app.core.addresses import forbidden, unmapped
from app.core.hosts import IPAddress, IPNetwork
from app.egress.reasons import Reason
from app.egress.sockets import NO_DESCRIPTORS, bound_memory
from app.egress.times import Times
from app.egress.turns import SandboxTurns

ADDRESSES_READ = 64  # of an answer; the others are not judged, and never dialled
ADDRESSES_TRIED = 8
_RESOLV_CONF = Path("/etc/resolv.conf")


class NotDialled(Exception):
    """`reason` is a Reason, or one of `core.addresses`. `address` is the one that it is about, if it is about one."""

    def __init__(self, reason: str, address: IPAddress | None = None) -> None:
        super().__init__(reason)
        self.reason, self.address = reason, address


class OwnAddresses:
    """The addresses of this machine, as the kernel's routes tell at the moment of the question."""

    def __contains__(self, address: object) -> bool:
        """A packet to an own address leaves from that address, or from the loopback's. No packet is sent for this."""
        if not isinstance(address, IPv4Address | IPv6Address):
            return False
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
    """`resolver` is `ADDRESS:PORT`, or "" for the system's. `service` has `ADDRESS:PORT` of what the service itself
    listens on. Raises ValueError."""

    def __init__(self, permit_nets: Sequence[str], resolver: str, service: Sequence[str], times: Times) -> None:
        self._permitted: tuple[IPNetwork, ...] = tuple(map(ip_network, permit_nets))
        self._times = times
        self._own: Container[IPAddress] = OwnAddresses()
        self._service = tuple(map(endpoint, service))
        self._given = endpoint(resolver) if resolver else None
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        self._read_at = -1

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
        addresses = await self._resolve(host) if isinstance(host, str) else [host]
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

    async def _resolve(self, name: str) -> list[IPAddress]:
        """All addresses, IPv4 first: it is what works wherever something works. Raises NotDialled."""
        resolver = self._configured()
        answers = await asyncio.gather(*(_ask(resolver, name, kind, self._times.resolve) for kind in ("A", "AAAA")))
        found = [address for answer in answers if not isinstance(answer, Reason) for address in answer]
        if found:
            return list(dict.fromkeys(found))[:ADDRESSES_READ]
        raise NotDialled(next((answer for answer in answers if isinstance(answer, Reason)), Reason.NOT_FOUND))

    def _configured(self) -> dns.asyncresolver.Resolver:
        if self._given is not None:
            address, port = self._given
            self._resolver.nameservers, self._resolver.port = [str(address)], port
            return self._resolver
        with contextlib.suppress(OSError, dns.exception.DNSException):
            changed = _RESOLV_CONF.stat().st_mtime_ns
            if changed != self._read_at:
                self._resolver = dns.asyncresolver.Resolver(str(_RESOLV_CONF))
                self._read_at = changed
        return self._resolver


def endpoint(text: str) -> tuple[IPAddress, int]:
    """`192.0.2.1:53` or `[2001:db8::1]:53`. Raises ValueError."""
    host, _, port = text.rpartition(":")
    return ip_address(host.removeprefix("[").removesuffix("]")), int(port)


def _reason_of(error: OSError, otherwise: Reason = Reason.UNREACHABLE) -> Reason:
    return Reason.DESCRIPTORS if error.errno in NO_DESCRIPTORS else otherwise


async def _ask(resolver: dns.asyncresolver.Resolver, name: str, kind: str, seconds: float) -> list[IPAddress] | Reason:
    try:
        answer = await resolver.resolve(f"{name}.", kind, search=False, lifetime=seconds, raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN:
        return Reason.NOT_FOUND
    except OSError as error:
        return _reason_of(error, Reason.RESOLVER)
    except dns.exception.DNSException:
        return Reason.RESOLVER
    return [ip_address(record.address) for record in answer.rrset or ()]


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
