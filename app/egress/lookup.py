"""The real addresses of a name, asked of the operator's DNS server or of those of the host.

Both kinds of address are asked for at once, over one socket that takes answers from that server alone. TCP is not used:
an answer of 64 KiB, which the owner of a name may give, would hold everybody up for 115 ms. What does not fit into a
datagram is not dialled.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import os
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import dns.exception
import dns.message
import dns.resolver
from dns.rcode import NOERROR, NXDOMAIN

from app.core.hosts import IPAddress
from app.egress.reasons import Reason
from app.egress.sockets import NO_DESCRIPTORS
from app.egress.times import Times
from app.egress.turns import SandboxTurns

PAYLOAD = 1232  # bytes of an answer that pass without fragments: about 70 addresses
_KEPT = 1024  # questions: about 2 MiB
_RESOLV_CONF = Path("/etc/resolv.conf")

Endpoint = tuple[IPAddress, int]
Answers = list[list[IPAddress] | None]  # of both kinds; None while, or because, there is none


class NoAddress(Exception):
    """`reason`: NOT_FOUND, RESOLVER or DESCRIPTORS."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Question:
    """One that is asked once: its id is random. A message of the same question is kept, because dnspython takes 0.07 ms
    to make it and to write it."""

    def __init__(self, name: str, kind: str, *, with_edns: bool) -> None:
        kept, packet = _message(name, kind, with_edns)
        self.message = copy.copy(kept)
        self.message.id = int.from_bytes(os.urandom(2))
        self.packet = self.message.id.to_bytes(2) + packet[2:]


@functools.lru_cache(maxsize=_KEPT)
def _message(name: str, kind: str, with_edns: bool) -> tuple[dns.message.QueryMessage, bytes]:
    message = dns.message.make_query(f"{name}.", kind, use_edns=with_edns, payload=PAYLOAD)
    return message, message.to_wire()


class Lookup:
    """`server` is the one to ask. Without one, those of /etc/resolv.conf are asked, which is read when it changes."""

    def __init__(self, server: Endpoint | None, times: Times) -> None:
        self._times, self._is_given = times, server is not None
        self._servers: Sequence[Endpoint] = [server] if server is not None else []
        self._read_at = -1

    async def addresses(self, turns: SandboxTurns, name: str) -> list[IPAddress]:
        """IPv4 first: it is what works wherever something works. Never empty. Raises NoAddress."""
        loop = asyncio.get_running_loop()
        until, reason = loop.time() + self._times.resolve, Reason.RESOLVER
        for edns in (True, False):  # old servers know nothing of it
            questions = [Question(name, kind, with_edns=edns) for kind in ("A", "AAAA")]
            for server in self._configured():
                seconds = min(until - loop.time(), self._times.server)
                try:
                    answers = await _ask(turns, server, questions, seconds)
                except OSError as error:
                    reason = Reason.DESCRIPTORS if error.errno in NO_DESCRIPTORS else Reason.RESOLVER
                    continue
                if found := [address for answer in answers for address in answer or ()]:
                    return list(dict.fromkeys(found))
                if None not in answers:
                    raise NoAddress(Reason.NOT_FOUND)
        raise NoAddress(reason)

    def _configured(self) -> Sequence[Endpoint]:
        if not self._is_given:
            with contextlib.suppress(OSError, ValueError, dns.exception.DNSException):
                changed = _RESOLV_CONF.stat().st_mtime_ns
                if changed != self._read_at:
                    found = dns.resolver.Resolver(str(_RESOLV_CONF))
                    self._servers = [(ip_address(str(server)), found.port) for server in found.nameservers]
                    self._read_at = changed
        return self._servers


async def _ask(turns: SandboxTurns, server: Endpoint, questions: Sequence[Question], seconds: float) -> Answers:
    """Returns what has come after so many seconds at most. Raises OSError."""
    answers: Answers = [None] * len(questions)
    waiting = dict(enumerate(questions))
    address, port = server
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as endpoint:
        endpoint.connect((str(address), port))
        try:
            async with asyncio.timeout(max(0.0, seconds)) as patience:
                for question in questions:
                    endpoint.send(question.packet)
                while waiting:
                    answer = _parse(await turns.receive(endpoint, PAYLOAD))
                    for number, question in list(waiting.items()):
                        if answer is not None and question.message.is_response(answer):
                            del waiting[number]
                            answers[number] = _addresses(answer)
        except TimeoutError:
            if not patience.expired():
                raise
        finally:
            turns.forget(endpoint.fileno())
    return answers


def _parse(data: bytes) -> dns.message.Message | None:
    try:
        return dns.message.from_wire(data, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return None


def _addresses(answer: dns.message.Message) -> list[IPAddress] | None:
    """Those at the end of its aliases. None when the server has failed."""
    if answer.rcode() not in (NOERROR, NXDOMAIN) or not isinstance(answer, dns.message.QueryMessage):
        return None
    try:
        return [ip_address(record.address) for record in answer.resolve_chaining().answer or ()]
    except (dns.exception.DNSException, ValueError):
        return None
