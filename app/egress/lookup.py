"""The real addresses of a name, asked of the operator's DNS server or of those of the host.

Both kinds of address are asked for at once, over one socket that takes answers from that server alone. TCP is not used:
an answer of 64 KiB, which the owner of a name may give, would hold everybody up for 115 ms. What does not fit into a
datagram is not dialled.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
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
_ANSWERS_KEPT = 256  # of 8 KiB at most, so 2 MiB
_ID = 2  # bytes at the beginning of every packet: RFC 1035, 4.1.1
_RESOLV_CONF = Path("/etc/resolv.conf")

Endpoint = tuple[IPAddress, int]


class NoAddress(Exception):
    """`reason`: NOT_FOUND, RESOLVER or DESCRIPTORS."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    """`addresses` are those at the end of its aliases. `has_failed`: the server could not tell."""

    addresses: tuple[IPAddress, ...]
    has_failed: bool = False


class Question:
    """One that is asked once: its id is random. What dnspython makes of the same question, or of the same answer to it,
    is kept: with cold caches it takes 0.07 ms to write a question, and 0.25 ms to read an answer."""

    def __init__(self, name: str, kind: str, *, with_edns: bool) -> None:
        self._asked = name, kind, with_edns
        self._id = os.urandom(_ID)
        self.packet = self._id + _question(*self._asked)[1]

    def answered_by(self, packet: bytes) -> Answer | None:
        """None: the packet is no answer to this question."""
        return _answer(*self._asked, packet[_ID:]) if packet[:_ID] == self._id else None


@functools.lru_cache(maxsize=_KEPT)
def _question(name: str, kind: str, with_edns: bool) -> tuple[dns.message.QueryMessage, bytes]:
    """With 0 as its id, and its packet without an id."""
    message = dns.message.make_query(f"{name}.", kind, use_edns=with_edns, payload=PAYLOAD, id=0)
    return message, message.to_wire()[_ID:]


@functools.lru_cache(maxsize=_ANSWERS_KEPT)
def _answer(name: str, kind: str, with_edns: bool, packet: bytes) -> Answer | None:
    """`packet` is without its id."""
    question, _ = _question(name, kind, with_edns)
    try:
        answer = dns.message.from_wire(bytes(_ID) + packet, ignore_trailing=True)
        return _told_by(answer) if question.is_response(answer) else None
    except (dns.exception.DNSException, ValueError):
        return None


def _told_by(answer: dns.message.Message) -> Answer:
    if answer.rcode() not in (NOERROR, NXDOMAIN) or not isinstance(answer, dns.message.QueryMessage):
        return Answer((), has_failed=True)
    try:
        return Answer(tuple(ip_address(record.address) for record in answer.resolve_chaining().answer or ()))
    except (dns.exception.DNSException, ValueError):
        return Answer((), has_failed=True)


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
                if found := [address for answer in answers for address in answer.addresses]:
                    return list(dict.fromkeys(found))
                if len(answers) == len(questions) and not any(answer.has_failed for answer in answers):
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


async def _ask(turns: SandboxTurns, server: Endpoint, questions: Sequence[Question], seconds: float) -> list[Answer]:
    """Returns what has come after so many seconds at most, in the order of the questions. Raises OSError."""
    answers: dict[Question, Answer] = {}
    address, port = server
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as endpoint:
        endpoint.connect((str(address), port))
        for question in questions:
            endpoint.send(question.packet)
        try:
            async with asyncio.timeout(max(0.0, seconds)) as patience:
                while len(answers) < len(questions):
                    packet = await turns.receive(endpoint, PAYLOAD)
                    for question in questions:
                        answer = question.answered_by(packet)
                        if answer is not None:
                            answers.setdefault(question, answer)
        except TimeoutError:
            if not patience.expired():
                raise
        finally:
            turns.forget(endpoint.fileno())
    return [answers[question] for question in questions if question in answers]
